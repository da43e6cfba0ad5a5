"""It is responsible for the index of the segment that grows, in memory: some 200 bytes an entry."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TypeVar

from libs.errors import MeshError
from libs.events.keyset import parse_keyset
from libs.events.records import SALT_SIZE, parse_entry
from libs.transparency.chain import entry_ids
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
        # What follows each other in a frame is mostly of one issuer and of one kind: a run costs little more than one.
        at = first
        for issuer, low, high in runs:
            places = range(at, at + high - low + 1)
            at = places.stop
            self.ids.update(zip([each[:ID_SIZE] for each in entry_ids(issuer, low, high)], places, strict=True))
            _add(self.issuers, issuer, places)
            known = self.runs.setdefault(issuer, [])
            if known and known[-1][1] + 1 == low:
                low = known.pop()[0]
            known.append((low, high))
        at = first
        for kind, same in groupby([kind for kind, _, _ in keys]):
            places = range(at, at + len(list(same)))
            at = places.stop
            _add(self.kinds, kind, places)
            if kind == Kind.KEYSET:
                self._add_closers(rows, first, places)
        for index, row in enumerate(rows, first):
            vault_id = row.vault_id
            of_vault = self.vaults.get(vault_id)
            if of_vault is None:
                self.vaults[vault_id] = array("Q", (index,))
            else:
                of_vault.append(index)
            month = (vault_id, row.vault_epoch)
            if month not in self._epochs:
                self._epochs[month] = index
        firsts, offsets, hashes = self.frames
        hashes.append(frame_hash)
        offsets.append(offset)
        firsts.append(first)
        self.end = first + len(rows)

    def _add_closers(self, rows: Sequence[Row], first: int, places: range) -> None:
        for index in places:
            if (closed := _closed_by(rows[index - first])) is not None:
                self.closers.append((closed, index))

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


def _add(known: dict[Key, array[int]], key: Key, places: range) -> None:
    found = known.get(key)
    if found is None:
        known[key] = array("Q", places)
    else:
        found.extend(places)


def _closed_by(row: Row) -> bytes | None:
    """Return the issuer whose sequence a keyset closes. One that cannot be read was never admitted, and closes none."""
    with suppress(MeshError):
        previous = parse_keyset(parse_entry(row.body[SALT_SIZE:]).body).previous
        return None if previous is None else previous.issuer
    return None
