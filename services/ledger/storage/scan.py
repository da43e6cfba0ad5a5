"""Reads a log and verifies what it reads. Changes nothing on disk but derived files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from libs.transparency.chain import log_id
from services.ledger.storage import frames, sealed, segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.head import Head
from services.ledger.storage.index import Index
from services.ledger.storage.segment_files import SegmentFile, identity, list_files

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class TornTail:
    """Bytes at the end of the last segment that are no frame, and after which there is none."""

    start: int
    """Where the last whole frame ends: the place to cut."""
    damage: int
    """The first byte that is known to be wrong."""
    why: str


@dataclass(slots=True)
class Scanned:
    """A verified log."""

    head: Head
    index: Index
    number: int = 0
    """How many segments there are."""
    read: int = 0
    """How many of them were read whole."""
    last_segment: int = 0
    last_end: int = 0
    """Where the last segment's frames end."""
    content: segments.ContentHash | None = None
    """Running hash of the last segment, None when it is sealed or there is none."""
    footer_hash: bytes = segments.NO_FOOTER
    """Of the newest sealed segment."""
    torn: TornTail | None = None
    bare: dict[int, int] = field(default_factory=dict)
    """First leaf, and the leaf after the last, of each segment that is without the bodies of tenants' entries."""


def scan(directory: Path, origin: str, geometry: segments.Geometry, index: Index) -> Scanned:
    """Verify a log and fill its index. Raises `LogDamaged` for anything but a torn tail, and `OSError`.

    A sealed segment that has its derived file is passed over; all others are read from the first byte to the last.
    """
    found, log = Scanned(Head(origin), index), log_id(origin)
    files = list_files(directory)
    for number, file in enumerate(files):
        path, first, is_last = file.path, found.head.size, number + 1 == len(files)
        if file.first != first:
            raise LogDamaged(segments.file_name(first), 0, f"the segment is missing; {path.name} comes next")
        if is_last:
            if file.is_bare:
                raise LogDamaged(path.name, 0, "the last segment is without the bodies of tenants' entries")
            _forget_cached(path)
        passed = sealed.pass_over(file, number, log, found.footer_hash, found.head, index)
        if passed is None:
            _SegmentScan(found, file, number, log, geometry).run(is_last)
            found.read += 1
        else:
            found.footer_hash, found.content, found.last_end = passed.footer_hash, None, passed.footer.length
        found.number, found.last_segment = number + 1, first
        if file.is_bare:
            found.bare[first] = found.head.size
    return found


def _forget_cached(path: Path) -> None:
    """Read from the disk: an earlier process may have left pages that never reached it but are marked clean."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


class _SegmentScan:
    """One segment's reading."""

    def __init__(self, found: Scanned, file: SegmentFile, number: int, log: bytes, geometry: segments.Geometry) -> None:
        self._found, self._path, self._number, self._log, self._geometry = found, file.path, number, log, geometry
        self._bare = file.is_bare
        self._first, self._end = found.head.size, segments.HEADER_SIZE
        self._length = self._end
        """How long the whole segment is up to here; a bare file is shorter."""
        self._content = segments.ContentHash()

    def run(self, is_last: bool) -> None:
        found = self._found
        with self._path.open("rb", buffering=_CHUNK) as file:
            self._read_header(file)
            footer = self._read_frames(file, is_last)
        found.last_end, found.content = self._end, None if footer else self._content
        if footer:
            found.footer_hash = segments.footer_hash(footer)
            found.index.seal(identity(found.footer_hash, is_bare=self._bare))
        elif not is_last:
            raise LogDamaged(self._path.name, self._end, "a segment that is not the last one has no footer")

    def _read_header(self, file: BinaryIO) -> None:
        data = file.read(segments.HEADER_SIZE)
        try:
            header = segments.Header.parse(data)
        except segments.SegmentMalformed as error:
            raise LogDamaged(self._path.name, self._first_difference(data), str(error)) from error
        if not sealed.continues(header, self._number, self._log, self._found.footer_hash, self._found.head):
            raise LogDamaged(self._path.name, 8, "the segment's header does not continue the segment before")
        self._content.update(data)

    def _first_difference(self, data: bytes) -> int:
        """Where a header that does not match its hash first differs from what the log before it says."""
        head, footer = self._found.head, self._found.footer_hash
        known = segments.Header(
            self._number, self._first, self._log, footer, head.chain, head.frame_hash, 0, 0, head.range.peaks
        ).pack()
        unknown = range(segments.EPOCH_AT, segments.EPOCH_AT + 16)
        hashed = min(len(data), segments.HEADER_HASHED)
        wrong = (at for at in range(hashed) if at not in unknown and data[at] != known[at])
        return next(wrong, segments.EPOCH_AT)

    def _read_frames(self, file: BinaryIO, is_last: bool) -> bytes | None:
        """Read frames up to the end. Returns the footer's bytes if there is one."""
        while start := file.read(frames.HEADER_SIZE):
            header = None
            try:
                if not any(start) and not self._bare:
                    self._check_fill(file, len(start))
                    return None
                if start.startswith(segments.SEAL_MAGIC):
                    return self._read_footer(start + file.read(segments.FOOTER_SIZE))
                header = frames.parse_header(start)
                data = start + frames.read_rest(file, header, bare=self._bare)
                self._accept(frames.parse(header, data, bare=self._bare), data)
            except frames.FrameDamaged as error:
                at = error.at if header or error.at else _leading_zeros(start)
                damage = LogDamaged(self._path.name, self._end + at, error.why)
                if not is_last or self._frame_follows(file, header):
                    raise damage from error
                self._found.torn = TornTail(self._end, damage.offset, error.why)
                return None
        return None

    def _accept(self, frame: frames.Frame, data: bytes) -> None:
        hashes = self._found.head.accept(frame, self._geometry.block_leaves)
        self._found.index.add(frame.header.first, frame.rows, self._end, hashes, frame.hash)
        self._content.update(data)
        self._end += len(data)
        self._length += frame.header.length

    def _read_footer(self, data: bytes) -> bytes:
        head = self._found.head
        try:
            footer = segments.Footer.parse(data)
        except segments.SegmentMalformed as error:
            raise frames.FrameDamaged(0, str(error)) from error
        expected = segments.describe(
            self._number, self._first, head, self._found.index.tree, self._content, self._length, self._geometry
        )
        if self._bare:
            # What it held is gone. The next segment names the footer, and its frames lead to the footer's last one.
            expected = replace(expected, content_hash=footer.content_hash)
        if footer.unsigned() != expected.unsigned():
            raise frames.FrameDamaged(8, "the segment's footer does not match its frames")
        return data

    def _check_fill(self, file: BinaryIO, skipped: int) -> None:
        """Check that zeros go on to the end of the file. Raises `FrameDamaged`."""
        at = skipped
        while chunk := file.read(_CHUNK):
            if chunk.count(0) != len(chunk):
                raise frames.FrameDamaged(at + _leading_zeros(chunk), "bytes after the last frame are not zero")
            at += len(chunk)

    def _frame_follows(self, file: BinaryIO, header: frames.Header | None) -> bool:
        """Whether anything after the damage proves that these bytes were once synced."""
        file.seek(self._end)
        rest = file.read()
        if len(rest) > segments.FOOTER_SIZE and _is_footer(rest[-segments.FOOTER_SIZE :]):
            return True
        return frames.find_header(rest, header.length if header else 1, self._found.head.size) is not None


def _leading_zeros(data: bytes) -> int:
    return len(data) - len(data.lstrip(b"\0"))


def _is_footer(data: bytes) -> bool:
    try:
        segments.Footer.parse(data)
    except segments.SegmentMalformed:
        return False
    return True
