"""Canonical JSON: the byte form (RFC 8785) in which the mesh hashes and signs documents, and its strict reader.

The reader refuses what makes canonical forms disagree between implementations: duplicate names, floats, integers
beyond 2^53, lone surrogates, and the name `__proto__`, which some JavaScript implementations drop silently.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any, NoReturn

import rfc8785

from libs.errors import Code, MeshError

MAX_SAFE_INTEGER = 2**53 - 1
MAX_DEPTH = 64


class JsonMalformed(MeshError):
    """The bytes are not JSON that has one canonical form."""

    code = Code.INVALID_ARGUMENT
    reason = "JSON_MALFORMED"


class JsonNotCanonical(JsonMalformed):
    """The bytes are JSON, in another form than its canonical one."""

    reason = "JSON_NOT_CANONICAL"


def dumps(value: Any) -> bytes:
    """Return the canonical UTF-8 form. Raises `JsonMalformed` for what has none."""
    with suppress(JsonMalformed):
        return dumps_readable(value)
    # What the reader would refuse, the reference implementation may still say.
    try:
        return rfc8785.dumps(value)
    except (ValueError, RecursionError) as error:
        raise JsonMalformed(f"no canonical form: {error}") from error


def dumps_readable(value: Any) -> bytes:
    """Return the canonical form of what `loads` could have returned; a tuple counts as a list. Raises `JsonMalformed`
    for every other value, a float for example.
    """
    if not _is_readable(value, MAX_DEPTH):
        raise JsonMalformed("not what strict JSON can say")
    try:
        return dumps_parsed(value)
    except ValueError as error:
        # Half of a surrogate pair has no UTF-8 form.
        raise JsonMalformed(f"no canonical form: {error}") from error


def dumps_parsed(value: Any) -> bytes:
    """Return the canonical form of what `loads` returned: it has one."""
    try:
        return _sorted_compact(value)
    except _NotComparable:
        return rfc8785.dumps(value)


def loads(data: bytes) -> Any:
    """Parse JSON strictly. Raises `JsonMalformed`. The input need not be canonical."""
    try:
        text = data.decode("utf-8")
        value = _DECODER.decode(text)
        _check_depth(value, MAX_DEPTH)
        if "\\u" in text:
            # An escape may name half of a surrogate pair, which has no UTF-8 form: encoding it refuses it.
            _ENCODER.encode(value).encode()
    except (ValueError, RecursionError) as error:
        raise JsonMalformed(f"not strict JSON: {error}") from error
    return value


def loads_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object strictly. Raises `JsonMalformed`."""
    value = loads(data)
    if not isinstance(value, dict):
        raise JsonMalformed("a JSON object is required")
    return value


def loads_canonical(data: bytes) -> Any:
    """Parse, as strictly as `loads`, JSON that must be in its canonical form, in much less time than by `loads` and
    comparing. Raises `JsonMalformed`, and `JsonNotCanonical` for another form of what `loads` may take.

    A name that comes twice needs no look of its own: of the two the parser keeps one, so the canonical form differs.
    """
    try:
        value = _CANONICAL_DECODER.decode(data.decode("utf-8"))
        # No value is nested deeper than it has brackets.
        if data.count(b"{") + data.count(b"[") > MAX_DEPTH:
            _check_depth(value, MAX_DEPTH)
        is_canonical = dumps_parsed(value) == data
    except (ValueError, RecursionError) as error:
        raise JsonMalformed(f"not strict JSON: {error}") from error
    if not is_canonical:
        raise JsonNotCanonical("not in its canonical form")
    if b'"__proto__":' in data:
        # Perhaps no name but a text: the strict reader knows.
        loads(data)
    return value


class _NotComparable(ValueError):
    """The standard encoder may have put the names in another order than RFC 8785 does."""


def _sorted_compact(value: Any) -> bytes:
    """Encode by the standard library: canonical for what `loads` may return, and many times faster.

    Python orders names by code point and RFC 8785 by UTF-16 unit, which differ only with characters beyond U+FFFF.
    """
    text = _ENCODER.encode(value)
    if not text.isascii() and _BEYOND_FFFF.search(text):
        raise _NotComparable
    return text.encode()


_BEYOND_FFFF = re.compile("[\U00010000-\U0010ffff]")
# What contains itself ends at the limit of recursion: looking for it each time is a tenth of the work.
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate name")
    if "__proto__" in members:
        raise ValueError("the name __proto__ is not allowed")
    return members


def _refuse_float(text: str) -> NoReturn:
    raise ValueError(f"only integers are allowed, not {text[:20]}")


def _safe_integer(text: str) -> int:
    # Python itself refuses texts so long that reading them would take time.
    value = int(text)
    if not -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER:
        raise ValueError("integer beyond 2^53 - 1")
    return value


def _is_readable(value: Any, left: int) -> bool:
    """Say whether the standard encoder writes a value as it is, and `loads` takes that, nested `left` deep at most.

    The encoder turns other keys into strings, and has its own form of floats. Half of a surrogate pair is not looked
    for: it cannot be encoded as UTF-8.
    """
    kind = type(value)
    if kind is dict:
        if left == 0 or "__proto__" in value:
            return False
        for name, member in value.items():
            # Most members are texts: looking before each call keeps this off them.
            if not isinstance(name, str) or not (type(member) is str or _is_readable(member, left - 1)):
                return False
        return True
    if kind is list or kind is tuple:
        return left > 0 and all(type(member) is str or _is_readable(member, left - 1) for member in value)
    if isinstance(value, int):
        return -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER
    return value is None or isinstance(value, str)


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    # What the standard parser returns is exactly of these types; looking before each call keeps this off the leaves.
    if type(value) is dict:
        value = value.values()
    elif type(value) is not list:
        return
    for member in value:
        if type(member) is dict or type(member) is list:
            _check_depth(member, left - 1)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_names,
    parse_float=_refuse_float,
    parse_constant=_refuse_float,
    parse_int=_safe_integer,
)
_CANONICAL_DECODER = json.JSONDecoder(
    parse_float=_refuse_float,
    parse_constant=_refuse_float,
    parse_int=_safe_integer,
)
