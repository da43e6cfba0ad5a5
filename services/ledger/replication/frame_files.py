"""It is responsible for the log as a sequence of frames: which comes after which, by name, as bytes on disk.

Frames without entries have no leaf, so a size alone names no frame: its hash does. Only what is durable is read.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from libs.errors import MeshError
from libs.transparency.chain import chain_start
from libs.transparency.merkle import EMPTY_ROOT
from services.ledger.storage import frames, segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.head import NO_FRAME
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.store import LogStore


class FramesPruned(MeshError):
    """Bodies were taken out of the frames that are asked for: a member that lacks them needs a copy of the files."""

    reason = "FRAMES_PRUNED"


_TRAILER = struct.Struct(">32s32s32sI")


@dataclass(frozen=True, slots=True)
class FrameName:
    """A frame by where it ends. The log's beginning is named by size 0 and zeros."""

    size: int
    hash: bytes


LOG_START = FrameName(0, NO_FRAME)


@dataclass(frozen=True, slots=True, order=True)
class FrameEnd:
    """Where a frame ends on this disk. Ordered as the log is; other members' files are cut elsewhere."""

    segment: int
    """First leaf of the segment."""
    offset: int
    name: FrameName = field(compare=False)


@dataclass(frozen=True, slots=True)
class Tip:
    """What the log is at the end of a frame."""

    epoch: int
    chain: bytes
    root: bytes


class FrameFiles:
    """Reads one log's frames beside its writer, up to an end that the caller knows to be durable."""

    def __init__(self, store: LogStore) -> None:
        """Whatever is read may raise `FramesPruned`."""
        self._store = store
        self._folder = store.directory / SEGMENTS

    def last(self) -> FrameEnd:
        """Return the end of the log. Not while anything is written."""
        segment, offset = self._store.end
        return FrameEnd(segment, offset, FrameName(self._store.head.size, self._store.head.frame_hash))

    def find(self, name: FrameName, until: FrameEnd) -> FrameEnd | None:
        """Return where a frame ends, or None where the log up to `until` has no such frame."""
        if name.size > until.name.size:
            return None
        at = self._last_of_leaf(name.size - 1) if name.size else _START
        while at.name.size == name.size:
            if at.name.hash == name.hash:
                return at
            if at.name.hash == until.name.hash:
                return None
            at = self.following(at)
        return None

    def following(self, at: FrameEnd) -> FrameEnd:
        """Return the end of the frame after one that is not the last. Raises `LogDamaged`."""
        segment, start = self._start_after(at)
        header = self._header(segment, start)
        return self._end_of(segment, start, header)

    def read(self, after: FrameEnd, until: FrameEnd, most_bytes: int) -> tuple[bytes, FrameEnd]:
        """Return whole frames, at least one, and where they end; nothing where `after` is the end."""
        taken: list[bytes] = []
        size, at = 0, after
        while at.name.hash != until.name.hash:
            segment, start = self._start_after(at)
            header = self._header(segment, start)
            if taken and size + header.length > most_bytes:
                break
            taken.append(self._pread(segment, start, header.length))
            size += header.length
            at = self._end_of(segment, start, header)
        return b"".join(taken), at

    def require_whole(self, after: FrameEnd, until: FrameEnd) -> None:
        """Read frames again, and raise `LogDamaged` where one is not what was written."""
        at = after
        while at.name.hash != until.name.hash:
            segment, start = self._start_after(at)
            header = self._header(segment, start)
            try:
                frame = frames.parse(header, self._pread(segment, start, header.length))
            except frames.FrameDamaged as error:
                raise LogDamaged(segments.file_name(segment), start + error.at, error.why) from error
            if header.previous != at.name.hash:
                raise LogDamaged(segments.file_name(segment), start, "the frame does not follow the one before it")
            at = FrameEnd(segment, start + header.length, FrameName(header.first + header.count, frame.hash))

    def backwards(self, end: FrameEnd, down_to: int, limit: int) -> Sequence[FrameName]:
        """Return the names of the last frames, newest first, and after at most `limit` of them that of the first that
        ends at `down_to` leaves.
        """
        start = self._last_of_leaf(down_to - 1) if down_to else _START
        last = deque((at.name for at in self._from(start, end)), limit)
        return [*reversed(last), start.name]

    def tip(self, end: FrameEnd) -> Tip:
        """Return the state of the log at the end of a frame."""
        if end.name == LOG_START:
            return Tip(0, chain_start(self._store.description.origin), EMPTY_ROOT)
        chain, root, _, length = self._trailer(end.segment, end.offset)
        return Tip(self._header(end.segment, end.offset - length).epoch, chain, root)

    def _from(self, start: FrameEnd, end: FrameEnd) -> Iterator[FrameEnd]:
        at = start
        while at.name.hash != end.name.hash:
            at = self.following(at)
            yield at

    def _last_of_leaf(self, index: int) -> FrameEnd:
        """Return the end of the frame that holds a leaf."""
        place = self._store.index.place(index)
        return self._end_of(place.segment, place.offset, self._header(place.segment, place.offset))

    def _start_after(self, at: FrameEnd) -> tuple[int, int]:
        start = self._pread(at.segment, at.offset, len(segments.SEAL_MAGIC))
        if start == segments.SEAL_MAGIC:
            return at.name.size, segments.HEADER_SIZE
        return at.segment, at.offset

    def _end_of(self, segment: int, start: int, header: frames.Header) -> FrameEnd:
        end = start + header.length
        _, _, digest, _ = self._trailer(segment, end)
        return FrameEnd(segment, end, FrameName(header.first + header.count, digest))

    def _trailer(self, segment: int, end: int) -> tuple[bytes, bytes, bytes, int]:
        chain, root, digest, length = _TRAILER.unpack(
            self._pread(segment, end - frames.TRAILER_SIZE, frames.TRAILER_SIZE)[: _TRAILER.size]
        )
        return chain, root, digest, length

    def _header(self, segment: int, offset: int) -> frames.Header:
        try:
            return frames.parse_header(self._pread(segment, offset, frames.HEADER_SIZE))
        except frames.FrameDamaged as error:
            raise LogDamaged(segments.file_name(segment), offset + error.at, error.why) from error

    def _pread(self, segment: int, offset: int, length: int) -> bytes:
        path = self._folder / segments.file_name(segment)
        if segment in self._store.bare:
            raise FramesPruned(f"{path.name} is pruned here: whoever lacks its frames needs a copy of an archive")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
        if len(data) != length:
            raise LogDamaged(path.name, offset + len(data), "the file ends within a frame")
        return data


_START = FrameEnd(0, segments.HEADER_SIZE, LOG_START)
