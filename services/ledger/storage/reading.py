"""Reads entries and frames back from the segments, and verifies them against the tree.

A disk that went bad after the start is thus found by whoever reads, not by whoever is handed the entry.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from libs.transparency import chain, leaf
from libs.transparency.acknowledgement import Statement
from libs.transparency.merkle import leaf_hash
from services.ledger.storage import frames, segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.index import Index
from services.ledger.storage.pieces import FramePlace
from services.ledger.storage.segment_files import BARE, SEGMENTS

_KIND_AT = 4
_NEAR = frames.MAX_ROWS
"""So many leaves are hashed sooner than the frame before them is read."""
_TENANTS = frozenset(kind for kind in leaf.Kind if kind.is_tenants)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One entry as the log holds it."""

    index: int
    row: frames.Row
    epoch: int
    """The writer's epoch when it committed the entry."""
    wall_ns: int

    @property
    def leaf(self) -> leaf.Leaf:
        return leaf.parse(self.row.leaf_data)


@dataclass(frozen=True, slots=True)
class WholeFrame:
    """A frame's own bytes, verified."""

    first: int
    end: int
    data: bytes
    months: frozenset[tuple[int, bytes]]
    """Epoch and vault of every entry."""
    chain_after: bytes
    """As the frame says; who reads the log by its frames checks the chain."""


class LogReader:
    """Safe to use from several threads at once, beside the writer."""

    def __init__(self, directory: Path, origin: str, index: Index, bare: Collection[int] = ()) -> None:
        """`bare` are the first leaves of segments without the bodies of tenants' entries, which are read as empty."""
        self._folders, self._index, self._bare = (directory / SEGMENTS, directory / BARE), index, bare
        self._start = chain.chain_start(origin)
        # A frame may be more than a reader takes at once, and is then asked for again at once.
        self._last: tuple[FramePlace, frames.Frame] | None = None
        self._last_table: tuple[FramePlace, frames.Header, bytes] | None = None

    def entry(self, index: int) -> StoredEntry:
        """Return one entry without reading the rest of its frame. Raises `IndexError` or `LogDamaged`."""
        place = self._index.place(index)
        with self._opened(place.segment) as file:
            header, table = self._table(place, file)
            row_at = frames.ROW_SIZE * (index - place.first)
            row_end, table_at = row_at + frames.ROW_SIZE, place.offset + frames.HEADER_SIZE
            body_at = table_at + len(table) + self._bodies_length(place.segment, table[:row_at])
            body = file.read(body_at, self._bodies_length(place.segment, table[row_at:row_end]))
        row, body_hash = frames.unpack_row(table[row_at:row_end], body)
        is_taken_out = place.segment in self._bare and leaf.is_tenants(row.leaf_data)
        if not is_taken_out and sha256(body).digest() != body_hash:
            raise LogDamaged(segments.file_name(place.segment), body_at, f"the body of entry {index} has changed")
        if leaf_hash(row.leaf_data) != self._index.tree.leaf(index):
            at = table_at + row_at
            raise LogDamaged(segments.file_name(place.segment), at, f"the leaf of entry {index} has changed")
        if _contradicts_leaf(row):
            raise LogDamaged(segments.file_name(place.segment), body_at, f"entry {index} says other than its leaf")
        return StoredEntry(index, row, header.epoch, header.wall_ns)

    def entries(self, start: int, end: int) -> Iterator[StoredEntry]:
        """Yield the entries from `start` up to, not including, `end`, or the log's end. Raises `LogDamaged`."""
        at, end = start, min(end, self._index.size)
        while at < end:
            place = self._index.place(at)
            frame = self.frame(place)
            for row in frame.rows[at - place.first : end - place.first]:
                yield StoredEntry(at, row, frame.header.epoch, frame.header.wall_ns)
                at += 1

    def frame(self, place: FramePlace) -> frames.Frame:
        """Return a whole frame, verified: its own hashes, its leaves, entries in clear. Raises `LogDamaged`."""
        last = self._last
        if last is not None and last[0] == place:
            return last[1]
        name = segments.file_name(place.segment)
        try:
            with self._opened(place.segment) as file:
                frame = self._parse(place, file)
        except frames.FrameDamaged as error:
            raise LogDamaged(name, place.offset + error.at, error.why) from error
        hashes = b"".join([leaf_hash(row.leaf_data) for row in frame.rows])
        if hashes != self._index.tree.leaves(place.first, place.first + frame.header.count):
            raise LogDamaged(name, place.offset, f"leaves of the frame from entry {place.first} on have changed")
        for index, row in enumerate(frame.rows, place.first):
            if _contradicts_leaf(row):
                raise LogDamaged(name, place.offset, f"entry {index} says other than its leaf")
        if frame.hash != place.hash:
            raise _made_anew(place)
        self._last = place, frame
        return frame

    def whole(self, place: FramePlace, most: int) -> WholeFrame | None:
        """Return a frame's bytes, verified as by `frame`; None for more than `most`, or if bodies were taken out.

        Raises `LogDamaged`.
        """
        if place.segment in self._bare:
            return None
        with self._opened(place.segment) as file:
            header = _read_header(place, file)
            if header.length > most:
                return None
            data = file.read(place.offset, header.length)
        name, end = segments.file_name(place.segment), place.first + header.count
        try:
            whole = frames.verify(header, data)
        except frames.FrameDamaged as error:
            raise LogDamaged(name, place.offset + error.at, error.why) from error
        if b"".join(map(leaf_hash, whole.leaves)) != self._index.tree.leaves(place.first, end):
            raise LogDamaged(name, place.offset, f"leaves of the frame from entry {place.first} on have changed")
        for index, (leaf_data, (start, stop)) in enumerate(zip(whole.leaves, whole.bodies, strict=True), place.first):
            if leaf_data[_KIND_AT] not in _TENANTS and not _commits_to(leaf_data, data[start:stop]):
                raise LogDamaged(name, place.offset, f"entry {index} says other than its leaf")
        if whole.hash != place.hash:
            raise _made_anew(place)
        return WholeFrame(place.first, end, data, whole.months, whole.chain_after)

    def statement(self, index: int) -> tuple[bytes, bytes]:
        """Return what was signed about an entry, and its leaf data, to issue the acknowledgement again."""
        stored = self.entry(index)
        vault_seq = self._index.vault_seq(stored.row.vault_id, index)
        return statement_of(stored, vault_seq, self._index.tree.leaf(index)).data(), stored.row.leaf_data

    def chain_at(self, size: int) -> bytes:
        """Return the chain head of the first `size` leaves. Raises `IndexError` or `LogDamaged`."""
        if size == 0:
            return self._start
        place = self._index.place(size - 1)
        return self._chain_over(self._chain_before(place), place.first, size)

    def chain_on(self, head: bytes, start: int, end: int) -> bytes:
        """Return the chain head of the first `end` leaves, given that of the first `start`. Raises `LogDamaged`.

        Who follows the log is mostly near its end, and then no segment is opened for it.
        """
        return self._chain_over(head, start, end) if end - start <= _NEAR else self.chain_at(end)

    def _chain_over(self, head: bytes, start: int, end: int) -> bytes:
        return chain.chain_over(head, start, self._index.tree.leaves(start, end))

    def _table(self, place: FramePlace, file: _File) -> tuple[frames.Header, bytes]:
        """Return a frame's header and rows, verified by the frame's hash. Raises `LogDamaged`."""
        last = self._last_table
        if last is not None and last[0] == place:
            return last[1:]
        packed = file.read(place.offset, frames.HEADER_SIZE)
        header = _header(place, file.name, packed)
        table = file.read(place.offset + frames.HEADER_SIZE, frames.ROW_SIZE * header.count)
        length = header.length
        if place.segment in self._bare:
            length = min(frames.bare_length(table), length)
        trailer = file.read(place.offset + length - frames.TRAILER_SIZE, frames.TRAILER_SIZE)
        if frames.hash_of(packed, table, trailer) != place.hash:
            raise _made_anew(place)
        self._last_table = place, header, table
        return header, table

    def _chain_before(self, place: FramePlace) -> bytes:
        if place.first == place.segment:
            with self._opened(place.segment) as file:
                return segments.Header.parse(file.read(0, segments.HEADER_SIZE)).chain
        before = self._index.place(place.first - 1)
        return self.frame(before).chain_after

    def _parse(self, place: FramePlace, file: _File) -> frames.Frame:
        header = _read_header(place, file)
        if place.segment not in self._bare:
            return frames.parse(header, file.read(place.offset, header.length))
        length = frames.bare_length(file.read(place.offset + frames.HEADER_SIZE, frames.ROW_SIZE * header.count))
        return frames.parse(header, file.read(place.offset, min(length, header.length)), bare=True)

    def _bodies_length(self, segment: int, rows: bytes) -> int:
        """Return how many bytes the bodies of some rows have in a segment's file."""
        return frames.kept_length(rows) if segment in self._bare else frames.bodies_length(rows)

    @contextmanager
    def _opened(self, segment: int) -> Iterator[_File]:
        # Not kept open: a long log has more segments than a process may have files.
        name = segments.file_name(segment)
        try:
            # By its name in a text: a `Path` and a file object cost ten times what opening the file does.
            descriptor = os.open(f"{self._folders[segment in self._bare]}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LogDamaged(name, 0, f"it cannot be read: {error.strerror}") from error
        try:
            yield _File(name, descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _File:
    """A segment's file while it is read."""

    name: str
    descriptor: int

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self.descriptor, length, offset)
        except OSError as error:
            raise LogDamaged(self.name, offset, f"it cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise LogDamaged(self.name, offset + len(data), "the file ends within an entry")
        return data


def _read_header(place: FramePlace, file: _File) -> frames.Header:
    return _header(place, file.name, file.read(place.offset, frames.HEADER_SIZE))


def _header(place: FramePlace, name: str, packed: bytes) -> frames.Header:
    try:
        header = frames.parse_header(packed)
    except frames.FrameDamaged as error:
        raise LogDamaged(name, place.offset + error.at, error.why) from error
    if header.first != place.first:
        raise LogDamaged(name, place.offset + 8, "another frame is in this place")
    return header


def _made_anew(place: FramePlace) -> LogDamaged:
    why = f"the frame from entry {place.first} on is another than was committed"
    return LogDamaged(segments.file_name(place.segment), place.offset, why)


def _contradicts_leaf(row: frames.Row) -> bool:
    """Whether an entry in clear is another than its leaf commits to.

    The row with the body's hash is no part of the leaf, and what decides who may write must follow from the leaf.
    """
    return row.leaf_data[_KIND_AT] not in _TENANTS and not _commits_to(row.leaf_data, row.body)


def _commits_to(leaf_data: bytes, body: bytes) -> bool:
    return sha256(body).digest() == leaf.parse(leaf_data).commitment


def statement_of(stored: StoredEntry, vault_seq: int, hashed: bytes) -> Statement:
    """Return what the ledger says about an entry."""
    public = stored.leaf
    return Statement(
        index=stored.index,
        time_ms=stored.wall_ns // 1_000_000,
        vault_seq=vault_seq,
        issuer_seq=public.issuer_seq,
        epoch=stored.epoch,
        issuer=public.issuer,
        leaf_hash=hashed,
    )
