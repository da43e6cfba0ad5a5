"""Responsible for reading SCALE: the compact integers, vectors and texts of dstack's first attestation form.

Total: any bytes are read or refused with `ScaleMalformed`. A stated length is compared with what is left before
anything is taken, so no input makes the reader hold more than itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from libs.errors import Code, MeshError

_BIG_MODE = 3

Item = TypeVar("Item")


class ScaleMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "SCALE_MALFORMED"


class ScaleReader:
    """Takes values from the front of the data, in the order in which they were written."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fixed(self, size: int) -> bytes:
        """Take exactly `size` bytes."""
        if size > len(self._data) - self._at:
            raise ScaleMalformed("the SCALE value ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def unsigned(self, size: int) -> int:
        """Take a little-endian integer of `size` bytes."""
        return int.from_bytes(self.fixed(size), "little")

    def compact(self) -> int:
        """Take a compact integer. Only its shortest form is read."""
        first = self.unsigned(1)
        mode, high = first & 3, first >> 2
        if mode == _BIG_MODE:
            value = self.unsigned(high + 4)
            # The last byte is the highest one: zero there means that a shorter form would do.
            shortest = self._data[self._at - 1] != 0 and value >= 1 << 30
        else:
            following = (1 << mode) - 1
            value = high | self.unsigned(following) << 6
            # The modes hold 6, 14 and 30 bits: each begins where the one before it ends.
            shortest = mode == 0 or value >> (6, 14)[mode - 1] != 0
        if not shortest:
            raise ScaleMalformed("a compact integer is not in its shortest form")
        return value

    def vector(self) -> bytes:
        """Take bytes after their compact length."""
        return self.fixed(self.compact())

    def text(self) -> str:
        """Take UTF-8 text after its compact length."""
        try:
            return self.vector().decode()
        except UnicodeDecodeError as error:
            raise ScaleMalformed("a text is not UTF-8") from error

    def items(self, take: Callable[[], Item], most: int) -> list[Item]:
        """Take a list, each item by `take`. A list of more than `most` is refused before its first item."""
        count = self.compact()
        if count > most:
            raise ScaleMalformed(f"a list has {count} items, at most {most} are read")
        return [take() for _ in range(count)]

    def finish(self) -> None:
        """Refuse bytes that nothing took."""
        if self._at != len(self._data):
            raise ScaleMalformed("the SCALE value is followed by something")
