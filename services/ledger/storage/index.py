"""It is responsible for what is derived from the segments: tree, frame places, entry ids, kinds, vaults, issuers.

Of a sealed segment it lies in a file beside it, of the growing one in memory. A file that is missing, or not what was
written, is made anew from its segment: it saves time, and is never believed over a segment.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from heapq import merge
from pathlib import Path

from libs.transparency import leaf
from libs.transparency.chain import entry_id
from libs.transparency.tree import SUBTREE, Tree, completed_by
from services.ledger.storage import derived
from services.ledger.storage.frames import Row
from services.ledger.storage.pages import PageDamaged
from services.ledger.storage.pieces import FramePlace, Piece, SealedUnder
from services.ledger.storage.progress import Progress
from services.ledger.storage.recent import Recent, runs_of
from services.ledger.storage.records_log import write_all
from services.ledger.storage.segment_index import SegmentIndex
from services.ledger.storage.selection import Selection, select


class Index:
    """Grows with each durable frame. Only the writer changes it; others may read at any time."""

    def __init__(self, folder: Path, key: bytes) -> None:
        """`folder` holds the derived files, made under `key`."""
        self.tree = Tree(self._stored_hashes)
        self._folder, self._key = folder, key
        self._files: tuple[SegmentIndex, ...] = ()
        self._recent = Recent(0)
        self._vaults: dict[bytes, int] = {}
        self._issuers: dict[bytes, Progress] = {}

    @property
    def size(self) -> int:
        return self.tree.size

    @property
    def files(self) -> Sequence[SegmentIndex]:
        return self._files

    def open(self, first: int, footer_hash: bytes) -> SegmentIndex | None:
        """Return the file of a sealed segment; None where that is missing or wrong."""
        path = self._folder / derived.file_name(first)
        found = SegmentIndex.open(path, first, footer_hash, self._key)
        if found is not None:
            try:
                # What `take` reads of it to find the tree's root.
                found.hashes(max(first, found.end - found.end % SUBTREE), found.end)
            except PageDamaged:
                return None
        return found

    def take(self, found: SegmentIndex) -> None:
        """Take in the next sealed segment by its file."""
        self.tree.restore(_hashes(found.nodes), found.end)
        for vault_id, count in found.vault_counts():
            self._vaults[vault_id] = self._vaults.get(vault_id, 0) + count
        for issuer, runs in found.issuer_runs():
            progress = self._issuers.setdefault(issuer, Progress())
            for low, high in runs:
                progress.add_run(low, high)
        self._files = (*self._files, found)
        self._recent = Recent(found.end)

    def add(self, first: int, rows: Sequence[Row], offset: int, hashes: Sequence[bytes], frame_hash: bytes) -> None:
        """Add the frame at `offset` of the growing segment; `hashes` are of its leaves."""
        keys = leaf.keys_of([row.leaf_data for row in rows])
        runs = list(runs_of(keys))
        self._recent.add(first, rows, keys, runs, offset, frame_hash)
        for vault_id, count in Counter([row.vault_id for row in rows]).items():
            self._vaults[vault_id] = self._vaults.get(vault_id, 0) + count
        for issuer, low, high in runs:
            self._issuers.setdefault(issuer, Progress()).add_run(low, high)
        # Last, because `size` is what readers go by.
        self.tree.extend(b"".join(hashes))

    def seal(self, footer_hash: bytes) -> None:
        """Put what is in memory of the growing segment, which IS sealed, into its file. Raises `OSError`."""
        recent, tree = self._recent, self.tree
        data = derived.build(
            recent,
            tree.leaves(recent.first, recent.end),
            tree.kept(*completed_by(recent.first, recent.end)),
            footer_hash,
            self._key,
        )
        path = self._folder / derived.file_name(recent.first)
        _write(path, data)
        made = SegmentIndex.open(path, recent.first, footer_hash, self._key)
        if made is None:
            raise OSError(0, "what was written is not there", str(path))
        # Readers that still ask memory for the sealed part find it there until they let go of it.
        self._files = (*self._files, made)
        self._recent = Recent(recent.end)
        tree.release(recent.end)

    def find(self, entry: bytes) -> int | None:
        """Return the index of an entry by its id, or None. The caller compares the leaf: ids are cut to 128 bits."""
        for piece in reversed(self._pieces()):
            found = piece.find(entry)
            if found is not None:
                return found
        return None

    def index_of(self, issuer: bytes, issuer_seq: int) -> int | None:
        """Return where an issuer's number is logged, or None where it is not."""
        if not self.has(issuer, issuer_seq):
            return None
        found = self.find(entry_id(issuer, issuer_seq))
        if found is None:
            raise RuntimeError(f"number {issuer_seq} of an issuer is logged, and no piece of the index has it")
        return found

    def place(self, index: int) -> FramePlace:
        """Return the frame that holds a leaf. Raises `IndexError` beyond the log."""
        if not 0 <= index < self.size:
            raise IndexError(f"no leaf {index}")
        return self._piece_of(index).place(index)

    def next_vault_seq(self, vault_id: bytes) -> int:
        """Return the number that the vault's next entry gets."""
        return self._vaults.get(vault_id, 0) + 1

    def vault_seq(self, vault_id: bytes, index: int) -> int:
        """Return the number that an entry got in its vault."""
        number = 1
        for piece in self._pieces():
            if piece.end > index:
                return number + bisect_left(piece.of_vault(vault_id), index)
            number += len(piece.of_vault(vault_id))
        raise IndexError(f"no leaf {index}")

    def progress(self, issuer: bytes) -> Progress | None:
        """Return which of an issuer's numbers are logged, or None for an issuer without entries."""
        return self._issuers.get(issuer)

    def has(self, issuer: bytes, issuer_seq: int) -> bool:
        """Whether an issuer's number is logged."""
        progress = self._issuers.get(issuer)
        return progress is not None and progress.has(issuer_seq)

    def of_kinds(self, kinds: Collection[int]) -> Iterator[int]:
        """Yield the indices of the entries of some kinds, in order."""
        for piece in self._pieces():
            yield from merge(*(piece.of_kind(kind) for kind in kinds))

    def selected(self, selection: Selection, low: int, high: int) -> Iterator[int]:
        """Yield the selected indices from `low` up to, not including, `high`, in order."""
        for piece in self._pieces():
            if piece.first < high and low < piece.end:
                yield from select(piece, selection, low, high)

    def selects_nothing_new(self, selection: Selection, low: int) -> bool:
        """Whether nothing from `low` on is selected, where memory alone can tell."""
        recent = self._recent
        return low >= recent.first and next(select(recent, selection, low, recent.end), None) is None

    def closings(self, issuer: bytes) -> list[int]:
        """Return the indices of the keysets that say they close an issuer's sequence, in order."""
        return [index for piece in self._pieces() for index in piece.closings(issuer)]

    def sealed_under(self) -> Iterator[SealedUnder]:
        """Yield every month of every vault that has entries, in each segment that has some."""
        for piece in self._pieces():
            yield from piece.sealed_under()

    def _pieces(self) -> tuple[Piece, ...]:
        # Memory first: what moves to a file meanwhile is then met twice, not missed.
        recent = self._recent
        return *(each for each in self._files if each.end <= recent.first), recent

    def _piece_of(self, index: int) -> Piece:
        pieces = self._pieces()
        return pieces[bisect_right(pieces, index, key=lambda piece: piece.first) - 1]

    def _stored_hashes(self, low: int, high: int) -> bytes:
        """Return the hashes of leaves of sealed segments, end to end."""
        files, found = self._files, []
        at = bisect_right(files, low, key=lambda each: each.first) - 1
        while low < high:
            end = min(high, files[at].end)
            found.append(files[at].hashes(low, end))
            low, at = end, at + 1
        return b"".join(found)


def remove_strays(folder: Path, files: Sequence[SegmentIndex]) -> None:
    """Delete what is in the folder besides these files."""
    kept = {derived.file_name(each.first) for each in files}
    for entry in list(os.scandir(folder)):
        if entry.name not in kept:
            os.unlink(entry.path)


def _write(path: Path, data: bytes) -> None:
    """Replace a file, without a sync: what a power cut leaves of it is found out by its MAC, and made anew."""
    draft = path.with_suffix(".tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, data, 0)
    finally:
        os.close(descriptor)
    os.replace(draft, path)


def _hashes(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 32] for at in range(0, len(data), 32))
