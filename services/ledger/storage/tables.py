"""It is responsible for tables in bytes: rows of one size, sorted by the key that each begins with."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator


class Table:
    """Found by bisection, so that a table costs its bytes and nothing more."""

    __slots__ = ("_data", "_key_size", "_row_size")

    def __init__(self, data: bytes, row_size: int, key_size: int) -> None:
        if len(data) % row_size:
            raise ValueError(f"{len(data)} bytes are no rows of {row_size}")
        self._data, self._row_size, self._key_size = data, row_size, key_size

    def __len__(self) -> int:
        return len(self._data) // self._row_size

    def __getitem__(self, number: int) -> bytes:
        """Return the key of a row: what `bisect` compares."""
        at = number * self._row_size
        return self._data[at : at + self._key_size]

    def row(self, number: int) -> bytes:
        """Return what follows the key of a row."""
        at = number * self._row_size
        return self._data[at + self._key_size : at + self._row_size]

    def of(self, key: bytes) -> bytes | None:
        """Return what follows a key in its first row, or None."""
        at = bisect_left(self, key)
        return self.row(at) if at < len(self) and self[at] == key else None

    def all_of(self, key: bytes) -> list[bytes]:
        """Return what follows a key in each of its rows."""
        found = []
        at = bisect_left(self, key)
        while at < len(self) and self[at] == key:
            found.append(self.row(at))
            at += 1
        return found

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key with what follows it."""
        return ((self[number], self.row(number)) for number in range(len(self)))


def packed(rows: Iterable[bytes]) -> bytes:
    """Return rows, sorted, as a table's bytes."""
    return b"".join(sorted(rows))
