"""Responsible for reading MessagePack by the shape that is expected: dstack's second attestation form.

Total: any bytes are read or refused with `MessagePackMalformed`. The library decodes only single numbers, texts and
byte strings here. A map or list is never handed to it whole: it makes room for as many members as a header
announces before it has seen one, once for every level, so three kilobytes of nested headers would cost 70 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgpack

from libs.errors import Code, MeshError

_UNSIGNED = frozenset((*range(0x80), 0xCC, 0xCD, 0xCE, 0xCF))
_TEXT = frozenset((*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB))
_BINARY = frozenset((0xC4, 0xC5, 0xC6))
_LIST = frozenset((*range(0x90, 0xA0), 0xDC, 0xDD))
_MAP = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))

Item = TypeVar("Item")


class MessagePackMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "MESSAGEPACK_MALFORMED"


class MessagePackReader:
    """Takes values from the front of the data; the caller says of what type each must be."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        # The library has no types of its own.
        unpacker: Any = msgpack.Unpacker  # type: ignore[attr-defined]
        self._unpacker = unpacker(max_buffer_size=max(1, len(data)), raw=False)
        self._unpacker.feed(data)

    def unsigned(self) -> int:
        number: int = self._take(_UNSIGNED, "a number", self._unpacker.unpack)
        return number

    def text(self) -> str:
        text: str = self._take(_TEXT, "a text", self._unpacker.unpack)
        return text

    def binary(self) -> bytes:
        content: bytes = self._take(_BINARY, "a byte string", self._unpacker.unpack)
        return content

    def octets(self, most: int) -> bytes:
        """Take bytes that may be written as a list of numbers, as dstack does where its types do not say otherwise."""
        if self._next() in _BINARY:
            content = self.binary()
            if len(content) > most:
                raise MessagePackMalformed(f"a byte string has {len(content)} bytes, at most {most} are read")
            return content
        try:
            return bytes(self.items(self.unsigned, most))
        except ValueError as error:
            raise MessagePackMalformed("a list of bytes holds a number above 255") from error

    def items(self, take: Callable[[], Item], most: int) -> list[Item]:
        """Take a list, each item by `take`. A list of more than `most` is refused before its first item."""
        count: int = self._take(_LIST, "a list", self._unpacker.read_array_header)
        if count > most:
            raise MessagePackMalformed(f"a list has {count} items, at most {most} are read")
        return [take() for _ in range(count)]

    def members(
        self, takes: Mapping[str, Callable[[], Any]], optional: frozenset[str] = frozenset()
    ) -> Mapping[str, Any]:
        """Take a map with exactly these members, in any order, each by its own function."""
        found: dict[str, Any] = {}
        count: int = self._take(_MAP, "a map", self._unpacker.read_map_header)
        for _ in range(count):
            name = self.text()
            if name in found or name not in takes:
                raise MessagePackMalformed("a map has a member twice, or one that is not known")
            found[name] = takes[name]()
        if missing := sorted(takes.keys() - optional - found.keys()):
            raise MessagePackMalformed(f"a map lacks {missing[0]}")
        return found

    def tagged(self, take: Callable[[str], Item]) -> Item:
        """Take a map of `kind` and then `data`, the data by the function for its kind."""
        count: int = self._take(_MAP, "a map", self._unpacker.read_map_header)
        if count != len(("kind", "data")) or self.text() != "kind":
            raise MessagePackMalformed("a map of kind and data is expected")
        kind = self.text()
        if self.text() != "data":
            raise MessagePackMalformed("a map of kind and data is expected")
        return take(kind)

    def finish(self) -> None:
        """Refuse bytes that nothing took."""
        if self._unpacker.tell() != len(self._data):
            raise MessagePackMalformed("the message is followed by something")

    def _next(self) -> int | None:
        at: int = self._unpacker.tell()
        return self._data[at] if at < len(self._data) else None

    def _take(self, first_bytes: frozenset[int], what: str, unpack: Callable[[], Any]) -> Any:
        if self._next() not in first_bytes:
            raise MessagePackMalformed(f"{what} is expected")
        try:
            return unpack()
        except (msgpack.OutOfData, ValueError) as error:
            raise MessagePackMalformed(f"{what} ends too early or is not UTF-8") from error
