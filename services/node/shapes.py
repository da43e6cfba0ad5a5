"""It is responsible for what a shape is, and for what is wrong first with a value that should have one.

A table has a row for each place in a body that is judged: `messages[].role` is the member `role` of what the list
`messages` holds, and the row without a name is the body. Nothing else is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.aci.rewriting import Number

TEXT, NUMBER, FLAG, OBJECT, LIST, NULL = str, Number, bool, dict, list, type(None)
"""The kinds of values that `rewriting.loads` makes."""

_NAMES: Mapping[type, str] = {
    TEXT: "a string",
    NUMBER: "a number",
    FLAG: "true or false",
    OBJECT: "an object",
    LIST: "a list",
    NULL: "null",
}
_LONGEST_TOKEN = 10
"""Digits of a token's number."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a value may be."""

    kinds: tuple[type, ...]
    needs: tuple[str, ...] = ()
    """The members that an object has."""
    by: str = ""
    """The member by which an object is one of `known`."""
    known: Mapping[str, tuple[str, ...]] | None = None
    """What `by`, or a text, may say, and the members that an object has then."""
    open: bool = False
    """Whether it may say something else, too."""
    fewest: int = 0
    """How many entries a list has."""
    apart: bool = False
    """Whether there are numbers alone in it, or none."""
    token: bool = False
    """Whether a number is a token's."""


def a(*kinds: type, **more: Any) -> Shape:
    """Write a shape as a row."""
    return Shape(kinds, **more)


@dataclass(slots=True)
class Place:
    """A row of a table, and the rows of what is in its value."""

    shape: Shape
    members: dict[str, Place] = field(default_factory=dict)
    each: Place | None = None


def planted(rows: Mapping[str, Shape]) -> Place:
    """Return a table as a tree. What is in a value MUST come after its own row."""
    places = {"": Place(rows[""])}
    for path, shape in rows.items():
        if not path:
            continue
        place = places[path] = Place(shape)
        if path.endswith("[]"):
            places[path.removesuffix("[]")].each = place
        else:
            above, _, name = path.rpartition(".")
            places[above].members[name] = place
    return places[""]


def fault_of(place: Place, value: Any, without: Collection[str] = ()) -> str | None:
    """Return what is wrong first with a value, after its own path; None where nothing is.

    What `without` names is not known here though a table has it.
    """
    fault = _own_fault(place.shape, value, without)
    if fault is not None:
        return fault
    if isinstance(value, dict):
        for name, member in place.members.items():
            if name in value and (fault := fault_of(member, value[name], without)) is not None:
                return f".{name}{fault}"
    elif isinstance(value, list) and place.each is not None:
        for position, entry in enumerate(value):
            if (fault := fault_of(place.each, entry, without)) is not None:
                return f"[{position}]{fault}"
    return None


def _own_fault(shape: Shape, value: Any, without: Collection[str]) -> str | None:
    kind = type(value)
    if kind not in shape.kinds:
        return f" must be {' or '.join(_NAMES[each] for each in shape.kinds)}"
    if kind is OBJECT:
        return _objects_fault(shape, value, without)
    if kind is LIST:
        return _lists_fault(shape, value)
    if kind is TEXT and shape.known is not None and value not in shape.known:
        return f" must be one of {_listed(shape.known)}"
    if kind is NUMBER and shape.token and not (value.isdigit() and len(value) <= _LONGEST_TOKEN):
        return " must be a token's number"
    return None


def _objects_fault(shape: Shape, value: Mapping[str, Any], without: Collection[str]) -> str | None:
    needs = shape.needs
    if shape.by and shape.known is not None:
        said = value.get(shape.by)
        if type(said) is not TEXT:
            return f".{shape.by} must be a string"
        if said in without or not (said in shape.known or shape.open):
            return f".{shape.by} must be one of {_listed(set(shape.known).difference(without))}"
        needs = shape.known.get(said, ())
    missing = next((name for name in needs if name not in value), None)
    return None if missing is None else f".{missing} is missing"


def _lists_fault(shape: Shape, value: list[Any]) -> str | None:
    if len(value) < shape.fewest:
        return f" must have at least {shape.fewest}"
    if shape.apart and NUMBER in (kinds := {type(entry) for entry in value}) and len(kinds) > 1:
        return " must have numbers alone, or none"
    return None


def _listed(known: Collection[str]) -> str:
    return ", ".join(sorted(known))
