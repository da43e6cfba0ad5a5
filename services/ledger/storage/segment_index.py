"""It is responsible for looking things up in a sealed segment's derived file, which stays on disk."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from libs.events.vault import VAULT_ID_SIZE
from libs.transparency.merkle import HASH_SIZE
from services.ledger.storage import derived
from services.ledger.storage.derived import FENCE_STEP, FRAME, ID, ISSUER_ROW, PLACE, RUN, SPAN, Tail
from services.ledger.storage.pages import PageDamaged, Pages
from services.ledger.storage.pieces import ID_SIZE, FramePlace, SealedUnder
from services.ledger.storage.tables import Table

_ISSUER = 32
_END = 4


class SegmentIndex:
    """For any number of threads. Everything may raise `PageDamaged`. Implements `Piece`."""

    def __init__(self, path: Path, tail: Tail, key: bytes) -> None:
        self.first, self.end = tail.first, tail.first + tail.count
        self.last_frame, self.nodes, self.footer_hash = tail.last_frame, tail.nodes, tail.footer_hash
        self._path, self._tail, self._key = path, tail, key
        self._pages = Pages(path, tail.size, tail.digests)
        self._kinds = Table(tail.kinds, 1 + SPAN.size, 1)
        self._vaults = Table(tail.vaults, VAULT_ID_SIZE + SPAN.size, VAULT_ID_SIZE)
        self._issuers = Table(tail.issuers, ISSUER_ROW.size, _ISSUER)
        self._closings = Table(tail.closings, _ISSUER + PLACE.size, _ISSUER)
        self._fence = Table(tail.fence, ID_SIZE, ID_SIZE)

    @classmethod
    def open(cls, path: Path, first: int, footer_hash: bytes, key: bytes) -> SegmentIndex | None:
        """Open the file that is derived from a segment; None where there is no such file, or not a true one."""
        tail = _read_tail(path, key)
        if tail is None or (tail.first, tail.footer_hash) != (first, footer_hash):
            return None
        return cls(path, tail, key)

    def hashes(self, low: int, high: int) -> bytes:
        """Return the hashes of some leaves, end to end."""
        return self._pages.read((low - self.first) * HASH_SIZE, (high - low) * HASH_SIZE)

    def place(self, index: int) -> FramePlace:
        frames = _Column(self._pages, self._tail.frames_at, FRAME.size, self._tail.frames)
        relative = index - self.first
        at = bisect_right(frames, PLACE.pack(relative)) - 1
        first, offset, frame_hash = FRAME.unpack(frames.row(at))
        return FramePlace(self.first + first, self.first, offset, frame_hash)

    def find(self, entry: bytes) -> int | None:
        wanted = entry[:ID_SIZE]
        block = bisect_right(self._fence, wanted) - 1
        if block < 0:
            return None
        start = block * FENCE_STEP
        count = min(FENCE_STEP, self.end - self.first - start)
        ids = Table(self._pages.read(self._tail.ids_at + start * ID.size, count * ID.size), ID.size, ID_SIZE)
        found = ids.of(wanted)
        return None if found is None else self.first + int.from_bytes(found, "big")

    def of_kind(self, kind: int) -> Sequence[int]:
        return self._places(self._kinds.of(bytes([kind])))

    def of_vault(self, vault_id: bytes) -> Sequence[int]:
        return self._places(self._vaults.of(vault_id))

    def of_issuer(self, issuer: bytes) -> Sequence[int]:
        row = self._issuers.of(issuer)
        return self._places(None if row is None else row[: SPAN.size])

    def closings(self, issuer: bytes) -> Sequence[int]:
        return [self.first + int.from_bytes(each, "big") for each in self._closings.all_of(issuer)]

    def sealed_under(self) -> Iterator[SealedUnder]:
        for vault_id, rest in Table(self._tail.epochs, VAULT_ID_SIZE + SPAN.size, VAULT_ID_SIZE).rows():
            epoch, place = SPAN.unpack(rest)
            yield SealedUnder(vault_id, epoch, self.first + place)

    def vault_counts(self) -> Iterator[tuple[bytes, int]]:
        """Yield every vault with the number of its entries here."""
        return ((vault_id, SPAN.unpack(span)[1]) for vault_id, span in self._vaults.rows())

    def issuer_runs(self) -> Iterator[tuple[bytes, list[tuple[int, int]]]]:
        """Yield every issuer with the runs of its numbers here."""
        for issuer, _, _, start, count in ISSUER_ROW.iter_unpack(self._tail.issuers):
            data = self._tail.runs[start * RUN.size : (start + count) * RUN.size]
            yield issuer, list(RUN.iter_unpack(data))

    def verify(self) -> None:
        """Read the whole file. Raises `PageDamaged`."""
        self._pages.verify()
        if _read_tail(self._path, self._key) != self._tail:
            self.remove()
            raise PageDamaged(f"{self._path.name} was changed or replaced")

    def remove(self) -> None:
        """Have the next start make the file anew, for which it reads the segment."""
        self._path.unlink(missing_ok=True)

    def _places(self, span: bytes | None) -> Sequence[int]:
        if span is None:
            return ()
        start, count = SPAN.unpack(span)
        return _Places(self._pages, self._tail.places_at + start * PLACE.size, count, self.first)


class _Column:
    """Rows of a file's section, for `bisect` by their first 4 bytes."""

    def __init__(self, pages: Pages, offset: int, row_size: int, count: int) -> None:
        self._pages, self._offset, self._row_size, self._count = pages, offset, row_size, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> bytes:
        return self._pages.read(self._offset + number * self._row_size, PLACE.size)

    def row(self, number: int) -> bytes:
        return self._pages.read(self._offset + number * self._row_size, self._row_size)


class _Places(Sequence[int]):
    """Leaves, one after the other."""

    def __init__(self, pages: Pages, offset: int, count: int, first: int) -> None:
        self._pages, self._offset, self._count, self._first = pages, offset, count, first

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> int: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[int]: ...
    def __getitem__(self, number: int | slice) -> int | Sequence[int]:
        if isinstance(number, slice):
            return [self[at] for at in range(*number.indices(self._count))]
        at = range(self._count)[number]
        return self._first + int.from_bytes(self._pages.read(self._offset + at * PLACE.size, PLACE.size), "big")


def _read_tail(path: Path, key: bytes) -> Tail | None:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _END:
                return None
            file.seek(size - _END)
            start = size - _END - derived.tail_length(file.read(_END))
            if start < 0:
                return None
            file.seek(start)
            tail = Tail.parse(file.read(size - _END - start), key)
    except OSError:
        return None
    return tail if tail is not None and tail.size == start else None
