"""The few CBOR items (RFC 8949) that a COSE receipt is made of, in their one deterministic form (section 4.2.1).

Whole numbers, bytes, text, arrays, maps with whole numbers as keys, tags and null. Anything else is refused, and so is
another form of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from libs.errors import Code, MeshError

_MAX_DEPTH = 8
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}
_NULL = b"\xf6"


class CborMalformed(MeshError):
    """The bytes are not CBOR of the form that receipts have."""

    code = Code.INVALID_ARGUMENT
    reason = "CBOR_MALFORMED"


@dataclass(frozen=True, slots=True)
class Tagged:
    """An item under a tag."""

    tag: int
    item: Item


Item: TypeAlias = "int | bytes | str | Sequence[Item] | Mapping[int, Item] | Tagged | None"


def encode(item: Item) -> bytes:
    """Return an item's bytes."""
    match item:
        case None:
            return _NULL
        case int():
            return _head(0, item) if item >= 0 else _head(1, -1 - item)
        case bytes():
            return _head(2, len(item)) + item
        case str():
            text = item.encode()
            return _head(3, len(text)) + text
        case Tagged():
            return _head(6, item.tag) + encode(item.item)
        case Mapping():
            pairs = sorted((encode(key), encode(value)) for key, value in item.items())
            return _head(5, len(pairs)) + b"".join(key + value for key, value in pairs)
        case _:
            return _head(4, len(item)) + b"".join(map(encode, item))


def decode(data: bytes) -> Item:
    """Read exactly one item, in its one form. Raises `CborMalformed`."""
    item, end = _item(data, 0, 0)
    if end != len(data):
        raise CborMalformed("something follows the item")
    if encode(item) != data:
        raise CborMalformed("the item is not in its one form")
    return item


def _head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes([major << 5 | value])
    for additional, width in _WIDTHS.items():
        if value < 1 << 8 * width:
            return bytes([major << 5 | additional]) + value.to_bytes(width, "big")
    raise CborMalformed("numbers have at most 64 bits")


def _item(data: bytes, at: int, depth: int) -> tuple[Item, int]:
    if depth > _MAX_DEPTH:
        raise CborMalformed(f"items are nested deeper than {_MAX_DEPTH}")
    if data[at : at + 1] == _NULL:
        return None, at + 1
    major, value, at = _read_head(data, at)
    match major:
        case 0:
            return value, at
        case 1:
            return -1 - value, at
        case 2 | 3:
            content = data[at : at + value]
            if len(content) != value:
                raise CborMalformed("the data ends within an item")
            return (content if major == 2 else _text(content)), at + value
        case 4:
            return _array(data, at, value, depth)
        case 5:
            return _map(data, at, value, depth)
        case 6:
            item, at = _item(data, at, depth + 1)
            return Tagged(value, item), at
    raise CborMalformed("only null of the simple values is known")


def _read_head(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the major type, the number in the head, and where the head ends."""
    if at >= len(data):
        raise CborMalformed("the data ends within an item")
    major, additional = data[at] >> 5, data[at] & 31
    at += 1
    if additional < 24:
        return major, additional, at
    width = _WIDTHS.get(additional)
    if width is None or at + width > len(data):
        raise CborMalformed("lengths are definite, and written out")
    return major, int.from_bytes(data[at : at + width], "big"), at + width


def _array(data: bytes, at: int, count: int, depth: int) -> tuple[Item, int]:
    items = []
    # Each takes a byte at least: a count that cannot be is found before it costs anything.
    if count > len(data) - at:
        raise CborMalformed("the data ends within an array")
    for _ in range(count):
        item, at = _item(data, at, depth + 1)
        items.append(item)
    return tuple(items), at


def _map(data: bytes, at: int, count: int, depth: int) -> tuple[Item, int]:
    members: dict[int, Item] = {}
    if count > len(data) - at:
        raise CborMalformed("the data ends within a map")
    for _ in range(count):
        key, at = _item(data, at, depth + 1)
        if not isinstance(key, int) or key in members:
            raise CborMalformed("keys are whole numbers, each once")
        members[key], at = _item(data, at, depth + 1)
    return members, at


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CborMalformed("text is UTF-8") from error
