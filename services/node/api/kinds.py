"""It is responsible for the kinds of values that a request body has, and for what is wrong first with one.

A table says of each value which kinds it may be of, of an object which members it has, and of a list what is in it. It
relies on nothing being nested deeper than tables are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from libs.aci.json_values import MOST_LEVELS, is_nested
from libs.aci.rewriting import Number
from services.node.refused import BodyRefused

_NAMES: Mapping[type, str] = {
    str: "a string",
    Number: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}
"""The types of what `rewriting.loads` makes."""
_LONGEST_NAME = 64
"""Of a member that is refused, in the words that say so."""
_LONGEST_TOKEN = 10
"""Digits of a token's number."""
_FETCHED = ("http://", "https://")


class ShapeRefused(BodyRefused):
    """A value is not of the shape that it has in the endpoint's API."""

    reason = "SHAPE_REFUSED"


class MemberRefused(BodyRefused):
    """The body, or what it is made of, has a member that is not known there."""

    reason = "MEMBER_REFUSED"


class MediaUrlRefused(BodyRefused):
    """The body names something to be fetched, and nothing is."""

    reason = "MEDIA_URL_REFUSED"


@dataclass(frozen=True, slots=True)
class EngineTakes:
    """What an engine takes of what its APIs have."""

    lacks: frozenset[str] = frozenset()
    """Types of what messages are made of that it does not take."""
    fetches: bool = False
    """Whether it is told URLs, of which it judges by itself what it fetches."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, in words that quote no more of a prompt than a member's name."""

    said: str
    where: str = ""
    refused: type[BodyRefused] = ShapeRefused

    def inside(self, place: str) -> Fault:
        return replace(self, where=place + self.where)

    def refusal(self) -> BodyRefused:
        return self.refused(f"{self.where.removeprefix('.')} {self.said}".lstrip())


class Kind(Protocol):
    """What a value of one type may be."""

    @property
    def type(self) -> type: ...

    def fault(self, value: Any, engine: EngineTakes) -> Fault | None:
        """Return what is wrong first with a value of this type, None where nothing is."""


@dataclass(frozen=True, slots=True)
class Value:
    """One of several kinds, by its type: see `a`."""

    kinds: Mapping[type, Kind]

    def fault(self, value: Any, engine: EngineTakes) -> Fault | None:
        kind = self.kinds.get(type(value))
        if kind is None:
            return Fault(f"must be {' or '.join(_NAMES[each] for each in self.kinds)}")
        return kind.fault(value, engine)


def a(*kinds: Kind) -> Value:
    """Return what is of one of these kinds."""
    return Value({kind.type: kind for kind in kinds})


@dataclass(frozen=True, slots=True)
class Plain:
    """Whatever it is, and whatever is in it: the engine judges it, or something beside these tables does."""

    type: type

    def fault(self, value: Any, engine: EngineTakes) -> Fault | None:
        return None


TEXT, NUMBER, FLAG, NULL = Plain(str), Plain(Number), Plain(bool), Plain(type(None))
OBJECT, LIST = Plain(dict), Plain(list)
STRING = a(TEXT)
SIMPLE = a(TEXT, NUMBER, FLAG, NULL)
ANYTHING = a(TEXT, NUMBER, FLAG, NULL, OBJECT, LIST)


@dataclass(frozen=True, slots=True)
class Word:
    """A text that is one of some."""

    type: ClassVar[type] = str
    words: frozenset[str]

    def fault(self, value: str, engine: EngineTakes) -> Fault | None:
        return None if value in self.words else _not_one_of(self.words)


@dataclass(frozen=True, slots=True)
class Json:
    """A text that engines read as JSON, which the body's own levels say nothing of. What it says, they judge."""

    type: ClassVar[type] = str

    def fault(self, value: str, engine: EngineTakes) -> Fault | None:
        if is_nested(value.encode("utf-8", "surrogatepass")):
            return Fault(f"must be JSON of at most {MOST_LEVELS} levels")
        return None


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes, encoded. Without any an engine would look for them elsewhere."""

    type: ClassVar[type] = str

    def fault(self, value: str, engine: EngineTakes) -> Fault | None:
        return None if value else Fault("must not be empty")


@dataclass(frozen=True, slots=True)
class Url:
    """Where bytes are: in the URL itself, unless the engine fetches."""

    type: ClassVar[type] = str

    def fault(self, value: str, engine: EngineTakes) -> Fault | None:
        if value.startswith("data:") or (engine.fetches and value.startswith(_FETCHED)):
            return None
        return Fault("must begin with data: or is a URL that is not fetched here", refused=MediaUrlRefused)


@dataclass(frozen=True, slots=True)
class Token:
    """A token by its number."""

    type: ClassVar[type] = Number

    def fault(self, value: Number, engine: EngineTakes) -> Fault | None:
        return None if value.isdigit() and len(value) <= _LONGEST_TOKEN else Fault("must be a token's number")


@dataclass(frozen=True, slots=True)
class Each:
    """A list, and what each entry is."""

    type: ClassVar[type] = list
    entry: Value
    fewest: int = 0
    numbers_apart: bool = False
    """Whether there are numbers alone in it, or none."""

    def fault(self, value: list[Any], engine: EngineTakes) -> Fault | None:
        if len(value) < self.fewest:
            return Fault(f"must have at least {self.fewest}")
        if self.numbers_apart and Number in (types := {type(entry) for entry in value}) and len(types) > 1:
            return Fault("must have numbers alone, or none")
        for position, entry in enumerate(value):
            if (fault := self.entry.fault(entry, engine)) is not None:
                return fault.inside(f"[{position}]")
        return None


@dataclass(frozen=True, slots=True)
class Members:
    """An object, and what its members are."""

    type: ClassVar[type] = dict
    known: Mapping[str, Value]
    needs: tuple[str, ...] = ()
    """Those that it has."""
    others: bool = False
    """Whether it may have others, too: they are judged elsewhere, or by the engine."""

    def fault(self, value: Mapping[str, Any], engine: EngineTakes) -> Fault | None:
        for name in self.needs:
            if name not in value:
                return Fault("is missing", f".{name}")
        for name, entry in value.items():
            kind = self.known.get(name)
            if kind is not None:
                if (fault := kind.fault(entry, engine)) is not None:
                    return fault.inside(f".{name}")
            elif not self.others:
                return Fault(f"has a member that is not taken: {name[:_LONGEST_NAME]!a}", refused=MemberRefused)
        return None

    def also(self, *needs: str, **known: Value) -> Members:
        """Return the kind of an object with these members besides, of which it has those named in `needs`."""
        return replace(self, known={**self.known, **known}, needs=(*self.needs, *needs))


@dataclass(frozen=True, slots=True)
class Sort:
    """An object of one of several sorts, by what one of its members says."""

    type: ClassVar[type] = dict
    sorts: Mapping[str, Members]
    by: str
    unsaid: str | None
    """Of which it is if it does not say it."""
    others: Members | None
    """What it is if it is of another sort; None where it may not be."""

    def fault(self, value: Mapping[str, Any], engine: EngineTakes) -> Fault | None:
        said = value.get(self.by, self.unsaid)
        if type(said) is not str:
            return Fault("must be a string", f".{self.by}")
        sort = self.sorts.get(said, self.others)
        if sort is None or said in engine.lacks:
            return _not_one_of(self.sorts.keys() - engine.lacks).inside(f".{self.by}")
        return sort.fault(value, engine)


def members(*needs: str, **known: Value) -> Members:
    """Return the kind of an object with these members, of which it has those named in `needs`."""
    return Members(known, needs)


def simple(*names: str) -> dict[str, Value]:
    """Return members of which the engine judges what they say."""
    return dict.fromkeys(names, SIMPLE)


def by(name: str, sorts: Mapping[str, Members], unsaid: str | None = None, *, others: Members | None = None) -> Sort:
    """Return the kind of an object that says by a member of which sort it is."""
    return Sort({said: sort.also(**{name: STRING}) for said, sort in sorts.items()}, name, unsaid, others)


def _not_one_of(known: Collection[str]) -> Fault:
    return Fault(f"must be one of {', '.join(sorted(known))}")
