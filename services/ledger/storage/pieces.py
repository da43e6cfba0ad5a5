"""It is responsible for what there is to know of one segment's entries besides the entries, in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

ID_SIZE = 16
"""How much of an entry's id an index goes by."""


@dataclass(frozen=True, slots=True)
class FramePlace:
    """Where a frame with entries lies."""

    first: int
    segment: int
    """First leaf of the segment, which is its file's name."""
    offset: int
    hash: bytes
    """What all that the frame says is under, its time and its entries' vaults and months included."""


@dataclass(frozen=True, slots=True)
class SealedUnder:
    """A month of a vault that a segment has entries of."""

    vault_id: bytes
    epoch: int
    index: int
    """Its first entry there."""


class Piece(Protocol):
    """The index of one segment. Indices are those of the log, in rising order."""

    @property
    def first(self) -> int: ...

    @property
    def end(self) -> int:
        """One more than the last leaf's index."""
        ...

    def place(self, index: int) -> FramePlace:
        """Return the frame that holds a leaf of this segment."""
        ...

    def find(self, entry: bytes) -> int | None:
        """Return the index of an entry by the first 128 bits of its id, or None."""
        ...

    def of_kind(self, kind: int) -> Sequence[int]: ...

    def of_vault(self, vault_id: bytes) -> Sequence[int]: ...

    def of_issuer(self, issuer: bytes) -> Sequence[int]: ...

    def closings(self, issuer: bytes) -> Sequence[int]:
        """Return the keysets that say they close this issuer's sequence."""
        ...

    def sealed_under(self) -> Iterator[SealedUnder]: ...
