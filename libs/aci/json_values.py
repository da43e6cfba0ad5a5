"""It is responsible for how many values a JSON text holds, and how deeply, told from its bytes: before anything is made
of each.

Read, a value takes some hundred bytes of memory and half a microsecond, however short it is. A body of a megabyte may
be one text or half a million numbers; its length does not tell which.
"""

from __future__ import annotations

import re

MOST_VALUES = 1 << 18
"""Of a request: as many token ids as a megabyte holds, whose values take some 30 MB. Names count as values."""

FEW_VALUES = 1 << 12
"""They are made in a millisecond or two, on an event loop, and take half a megabyte."""

MOST_LEVELS = 64
"""Of lists and objects, one within the other. Engines call themselves once for each, on a stack that ends."""

_LONG_OCTETS = 1 << 20

_STARTS = (b",", b"[", b"{", b":")
"""Before every value or name but the outermost stands one of these."""
_OTHERS = bytes(set(range(256)) - set(b'",[{:'))
_NO_BRACKETS = bytes(set(range(256)) - set(b'"[]{}'))
_STRING = re.compile(rb'"[^"]*"')


def most_values(text: bytes | bytearray) -> int:
    """Return a number that the text's values and names are at most. It takes a millisecond for each megabyte.

    What looks like a separator within strings is counted, too.
    """
    return 1 + sum(map(text.count, _STARTS))


def weight(text: bytes | bytearray) -> int:
    """Return how much it is to read a text, in values, within a millisecond. What is no more than `FEW_VALUES` may be
    read on an event loop.
    """
    # Of a long text it takes long even to count them, and to copy it.
    return most_values(text) if len(text) <= _LONG_OCTETS else len(text)


def has_more_values(text: bytes | bytearray, most: int) -> bool:
    """Say whether the text has more values and names than that, not counting what stands within strings."""
    return most_values(text) > most and values_in(text) > most


def values_in(text: bytes | bytearray) -> int:
    """Return how many values and names the text has, not counting what stands within strings. It takes some
    milliseconds for each megabyte.

    Of what is not JSON, they are those of the part before that shows.
    """
    return most_values(_outside_strings(text, _OTHERS))


def is_nested(text: bytes, most: int = MOST_LEVELS) -> bool:
    """Say whether the text has more levels than that, not counting what stands within strings. It takes some
    milliseconds for each megabyte, and some twenty for half a million brackets.

    Of what is not JSON, they are those of the part before that shows.
    """
    if text.count(b"[") + text.count(b"{") <= most:
        return False
    level = 0
    for bracket in _outside_strings(text, _NO_BRACKETS):
        level += 1 if bracket in b"[{" else -1
        if not 0 <= level <= most:
            return level > most
    return False


def _outside_strings(text: bytes | bytearray, others: bytes) -> bytes | bytearray:
    """Return what stands outside of strings, less the `others`, of which no quotation mark is one."""
    # Of a run of backslashes within a string, pairs are one character each; one that is left is before what it escapes.
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Whatever else is gone, an empty string was one without anything that is told.
    return _STRING.sub(b"", unescaped.translate(None, others).replace(b'""', b""))
