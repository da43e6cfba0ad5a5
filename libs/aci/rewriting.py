"""Responsible for JSON that is read, changed in places and written on: member order and number texts stay.

What others hash and what engines compute with must not be rounded or reordered on its way. What is written is compact
UTF-8 as JavaScript's `JSON.stringify` has it: nothing is escaped that need not be.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeGuard

from libs.errors import Code, MeshError


class JsonNotRewritable(MeshError):
    """The bytes are not one JSON value. Never quotes them."""

    code = Code.INVALID_ARGUMENT
    reason = "JSON_NOT_REWRITABLE"


class NameRepeated(JsonNotRewritable):
    """An object has two members of one name: of two, another reader could take the other."""

    reason = "JSON_NAME_REPEATED"


class Number(str):
    """A number as it was written. It is a `str` and no text: ask `is_text`."""

    __slots__ = ()


def is_text(value: object) -> TypeGuard[str]:
    """Say whether a value that `loads` returned is a JSON string."""
    return isinstance(value, str) and not isinstance(value, Number)


def loads(data: bytes) -> Any:
    """Read JSON. Raises `JsonNotRewritable`."""
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_names,
            parse_int=_number,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        # The parser's own words could quote a prompt.
        raise JsonNotRewritable("not one UTF-8 JSON value") from error


def dumps(value: Any) -> bytes:
    """Write what `loads` returned, changed or not. Raises `JsonNotRewritable` when it is nested too deeply."""
    parts: list[str] = []
    try:
        _write(value, parts)
    except RecursionError as error:
        raise JsonNotRewritable("nested too deeply") from error
    # A lone surrogate has no UTF-8; it stays the escape that it came as.
    return "".join(parts).encode("utf-8", "backslashreplace")


def _write(value: Any, parts: list[str]) -> None:
    if isinstance(value, Number):
        parts.append(value)
    elif isinstance(value, dict):
        parts.append("{")
        for position, (name, member) in enumerate(value.items()):
            parts.append(("," if position else "") + _text(name) + ":")
            _write(member, parts)
        parts.append("}")
    elif isinstance(value, list):
        parts.append("[")
        for position, item in enumerate(value):
            if position:
                parts.append(",")
            _write(item, parts)
        parts.append("]")
    else:
        parts.append(_text(value))


_text = json.JSONEncoder(ensure_ascii=False).encode
"""Of a string, true, false or null."""


def _number(text: str) -> Number:
    # Many numbers are read in a thread beside the event loop, and only where Python code runs is its turn passed on.
    return Number(text)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NameRepeated("a name is repeated")
    return members


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
