"""It is responsible for the index of the segment that grows, in memory: some 200 bytes an entry."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from libs.errors import MeshError
from libs.events.keyset import parse_keyset
from libs.events.records import SALT_SIZE, parse_entry
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from services.ledger.storage.frames import Row
from services.ledger.storage.pieces import ID_SIZE, FramePlace, SealedUnder

LeafKey = tuple[int, bytes, int]
"""Kind, issuer and number."""
Run = tuple[bytes, int, int]
"""An issuer, and the first and last of numbers without a hole."""
Key = TypeVar("Key", int, bytes)

_NONE: array[int] = array("Q")


class Recent:
    """Grows with each durable frame. Only the writer adds; others may read at any time. Implements `Piece`."""

    def __init__(self, first: int) -> None:
        self.first = self.end = first
        self.last_frame = 0
        """Offset of the newest frame, one without entries included."""
        self.frames: tuple[array[int], array[int], list[bytes]] = (array("Q"), array("Q"), [])
        """First leaf, offset and hash of each frame that has entries."""
        self.ids: dict[bytes, int] = {}
        self.kinds: dict[int, array[int]] = {}
        self.vaults: dict[bytes, array[int]] = {}
        self.issuers: dict[bytes, array[int]] = {}
        self.runs: dict[bytes, list[tuple[int, int]]] = {}
        """Which numbers of an issuer are here: first and last of each run, in order of arrival."""
        self.closers: list[tuple[bytes, int]] = []
        self._epochs: dict[tuple[bytes, int], int] = {}

    def add(
        self,
        first: int,
        rows: Sequence[Row],
        keys: Sequence[LeafKey],
        runs: Sequence[Run],
        offset: int,
        frame_hash: bytes,
    ) -> None:
        """Add the frame at `offset`."""
        self.last_frame = offset
        if not rows:
            return
        for index, (row, (kind, issuer, number)) in enumerate(zip(rows, keys, strict=True), first):
            self.ids[entry_id(issuer, number)[:ID_SIZE]] = index
            _add(self.kinds, kind, index)
            _add(self.vaults, row.vault_id, index)
            _add(self.issuers, issuer, index)
            self._epochs.setdefault((row.vault_id, row.vault_epoch), index)
            if kind == Kind.KEYSET and (closed := _closed_by(row)) is not None:
                self.closers.append((closed, index))
        for issuer, low, high in runs:
            known = self.runs.setdefault(issuer, [])
            if known and known[-1][1] + 1 == low:
                low = known.pop()[0]
            known.append((low, high))
        firsts, offsets, hashes = self.frames
        hashes.append(frame_hash)
        offsets.append(offset)
        firsts.append(first)
        self.end = first + len(rows)

    def place(self, index: int) -> FramePlace:
        firsts, offsets, hashes = self.frames
        at = bisect_right(firsts, index) - 1
        return FramePlace(firsts[at], self.first, offsets[at], hashes[at])

    def find(self, entry: bytes) -> int | None:
        return self.ids.get(entry[:ID_SIZE])

    def of_kind(self, kind: int) -> Sequence[int]:
        return self.kinds.get(kind, _NONE)

    def of_vault(self, vault_id: bytes) -> Sequence[int]:
        return self.vaults.get(vault_id, _NONE)

    def of_issuer(self, issuer: bytes) -> Sequence[int]:
        return self.issuers.get(issuer, _NONE)

    def closings(self, issuer: bytes) -> Sequence[int]:
        return [index for closed, index in self.closers if closed == issuer]

    def sealed_under(self) -> Iterator[SealedUnder]:
        return (SealedUnder(vault_id, epoch, index) for (vault_id, epoch), index in list(self._epochs.items()))


def runs_of(keys: Sequence[LeafKey]) -> Iterator[Run]:
    """Yield the runs of numbers of one issuer that follow each other."""
    current, low, high = b"", 0, -1
    for _, issuer, number in keys:
        if number == high + 1 and issuer == current:
            high = number
            continue
        if current:
            yield current, low, high
        current, low, high = issuer, number, number
    if current:
        yield current, low, high


def _add(places: dict[Key, array[int]], key: Key, index: int) -> None:
    found = places.get(key)
    if found is None:
        places[key] = array("Q", (index,))
    else:
        found.append(index)


def _closed_by(row: Row) -> bytes | None:
    """Return the issuer whose sequence a keyset closes. One that cannot be read was never admitted, and closes none."""
    with suppress(MeshError):
        previous = parse_keyset(parse_entry(row.body[SALT_SIZE:]).body).previous
        return None if previous is None else previous.issuer
    return None
