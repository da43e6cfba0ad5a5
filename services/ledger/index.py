"""What is derived from the segments and kept in memory: tree, frame positions, entry ids, vaults, issuers.

About 250 bytes an entry, rebuilt at every start, so a wrong index can never outlive the process.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from libs.transparency import leaf
from libs.transparency.chain import entry_id
from libs.transparency.tree import Tree
from services.ledger.frames import Frame, Row

_ID_SIZE = 16


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Where a frame with entries lies."""

    first: int
    segment: int
    """First leaf of the segment, which is its file's name."""
    offset: int


class Progress:
    """Which numbers of one issuer are logged. Arrival order is free, so numbers may be ahead of a hole."""

    __slots__ = ("_ahead", "contiguous")

    def __init__(self) -> None:
        self.contiguous = 0
        self._ahead: set[int] = set()

    @property
    def highest(self) -> int:
        return max(self._ahead, default=self.contiguous)

    def add(self, issuer_seq: int) -> None:
        self._ahead.add(issuer_seq)
        while self.contiguous + 1 in self._ahead:
            self.contiguous += 1
            self._ahead.remove(self.contiguous)

    def missing(self, limit: int) -> list[int]:
        """Return the first numbers, at most `limit`, that are not logged though a later one is."""
        found: list[int] = []
        previous = self.contiguous
        for number in sorted(self._ahead):
            found.extend(range(previous + 1, min(number, previous + 1 + limit - len(found))))
            if len(found) >= limit:
                break
            previous = number
        return found


class Index:
    """Grows with each durable frame. Only the writer adds; others may read at any time."""

    def __init__(self) -> None:
        self.tree = Tree()
        self._firsts = array("Q")
        self._offsets = array("Q")
        self._segments: list[int] = []
        self._entries: dict[bytes, int] = {}
        self._vaults: dict[bytes, array[int]] = {}
        self._issuers: dict[bytes, Progress] = {}

    @property
    def size(self) -> int:
        return self.tree.size

    @property
    def segments(self) -> Sequence[int]:
        return self._segments

    def add_segment(self, first: int) -> None:
        self._segments.append(first)

    def add(self, frame: Frame, offset: int, hashes: Sequence[bytes]) -> None:
        """Add a frame of the newest segment."""
        self.add_rows(frame.header.first, frame.rows, offset, hashes)

    def add_rows(self, first: int, rows: Sequence[Row], offset: int, hashes: Sequence[bytes]) -> None:
        """Add the rows of the frame at `offset` of the newest segment."""
        if not rows:
            return
        self._firsts.append(first)
        self._offsets.append(offset)
        for index, (row, hashed) in enumerate(zip(rows, hashes, strict=True), first):
            public = leaf.parse(row.leaf_data)
            self._entries[entry_id(public.issuer, public.issuer_seq)[:_ID_SIZE]] = index
            self._vaults.setdefault(row.vault_id, array("Q")).append(index)
            self._issuers.setdefault(public.issuer, Progress()).add(public.issuer_seq)
            # Last, because `size` is what readers go by.
            self.tree.append(hashed)

    def find(self, entry: bytes) -> int | None:
        """Return the index of an entry by its id, or None. The caller compares the leaf: ids are cut to 128 bits."""
        return self._entries.get(entry[:_ID_SIZE])

    def place(self, index: int) -> FramePlace:
        """Return the frame that holds a leaf. Raises `IndexError` beyond the log."""
        if not 0 <= index < self.size:
            raise IndexError(f"no leaf {index}")
        at = bisect_right(self._firsts, index) - 1
        first = self._firsts[at]
        return FramePlace(first, self._segments[bisect_right(self._segments, first) - 1], self._offsets[at])

    def next_vault_seq(self, vault_id: bytes) -> int:
        """Return the number that the vault's next entry gets."""
        return len(self._vaults.get(vault_id, ())) + 1

    def vault_seq(self, vault_id: bytes, index: int) -> int:
        """Return the number that an entry got in its vault."""
        return bisect_left(self._vaults[vault_id], index) + 1

    def vault_entries(self, vault_id: bytes) -> Sequence[int]:
        """Return the indices of a vault's entries, in order."""
        return self._vaults.get(vault_id, array("Q"))

    def issuers(self) -> Sequence[bytes]:
        return tuple(self._issuers)

    def progress(self, issuer: bytes) -> Progress | None:
        """Return which of an issuer's numbers are logged, or None for an issuer without entries."""
        return self._issuers.get(issuer)
