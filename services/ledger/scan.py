"""Reads a log from its first byte to its last and verifies everything. Changes nothing on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from libs.transparency.chain import log_id
from services.ledger import frames, segments
from services.ledger.damage import LogDamaged
from services.ledger.head import Head
from services.ledger.index import Index

SEGMENTS = "seg"
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
    last_segment: int = 0
    last_end: int = 0
    """Where the last segment's frames end."""
    content: segments.ContentHash | None = None
    """Running hash of the last segment, None when it is sealed or there is none."""
    footer_hash: bytes = segments.NO_FOOTER
    """Of the newest sealed segment."""
    torn: TornTail | None = None


def scan(directory: Path, origin: str, geometry: segments.Geometry) -> Scanned:
    """Verify every segment. Raises `LogDamaged` for anything but a torn tail."""
    found = Scanned(Head(origin), Index())
    names = _segment_names(directory / SEGMENTS)
    for number, name in enumerate(names):
        expected = segments.file_name(found.head.size)
        if name != expected:
            raise LogDamaged(expected, 0, f"the segment is missing; {name} comes next")
        _SegmentScan(found, directory / SEGMENTS / name, number, log_id(origin), geometry).run(number + 1 == len(names))
    return found


def is_temporary(name: str) -> bool:
    """Whether a file in the segments' folder was never finished."""
    return name.endswith(".tmp")


def _segment_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if not is_temporary(entry.name))
    for name in names:
        stem = name.removesuffix(segments.SUFFIX)
        if stem == name or len(stem) != 20 or not (stem.isascii() and stem.isdigit()):
            raise LogDamaged(name, 0, "the file is no segment and does not belong here")
    return names


class _SegmentScan:
    """One segment's reading."""

    def __init__(self, found: Scanned, path: Path, number: int, log: bytes, geometry: segments.Geometry) -> None:
        self._found, self._path, self._number, self._log, self._geometry = found, path, number, log, geometry
        self._first = found.head.size
        self._end = segments.HEADER_SIZE
        self._content = segments.ContentHash()

    def run(self, is_last: bool) -> None:
        found = self._found
        with self._path.open("rb", buffering=_CHUNK) as file:
            if is_last:
                # An earlier process may have left pages that never reached the disk but are marked clean.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._read_header(file)
            found.index.add_segment(self._first)
            footer = self._read_frames(file, is_last)
        found.number, found.last_segment, found.last_end = self._number + 1, self._first, self._end
        found.content = None if footer else self._content
        if footer:
            found.footer_hash = sha256(footer).digest()
        elif not is_last:
            raise LogDamaged(self._path.name, self._end, "a segment that is not the last one has no footer")

    def _read_header(self, file: BinaryIO) -> None:
        data, head = file.read(segments.HEADER_SIZE), self._found.head
        try:
            header = segments.Header.parse(data)
        except segments.SegmentMalformed as error:
            raise LogDamaged(self._path.name, 0, str(error)) from error
        expected = (self._number, self._first, self._log, self._found.footer_hash, head.chain, head.frame_hash)
        actual = (header.number, header.first, header.log_id, header.previous_footer, header.chain, header.frame_hash)
        if actual != expected or header.peaks != head.range.peaks or header.epoch < head.epoch:
            raise LogDamaged(self._path.name, 8, "the segment's header does not continue the segment before")
        self._content.update(data)

    def _read_frames(self, file: BinaryIO, is_last: bool) -> bytes | None:
        """Read frames up to the end. Returns the footer's bytes if there is one."""
        while start := file.read(frames.HEADER_SIZE):
            header = None
            try:
                if not any(start) and _rest_is_zero(file):
                    return None
                if start.startswith(segments.SEAL_MAGIC):
                    return self._read_footer(start + file.read(segments.FOOTER_SIZE))
                header = frames.parse_header(start)
                data = start + file.read(header.length - len(start))
                self._accept(frames.parse(header, data), data)
            except frames.FrameDamaged as error:
                damage = LogDamaged(self._path.name, self._end + error.at, error.why)
                if not is_last or self._frame_follows(file, header):
                    raise damage from error
                self._found.torn = TornTail(self._end, damage.offset, error.why)
                return None
        return None

    def _accept(self, frame: frames.Frame, data: bytes) -> None:
        hashes = self._found.head.accept(frame, self._geometry.block_leaves)
        self._found.index.add(frame, self._end, hashes)
        self._content.update(data)
        self._end += len(data)

    def _read_footer(self, data: bytes) -> bytes:
        head = self._found.head
        try:
            footer = segments.Footer.parse(data)
        except segments.SegmentMalformed as error:
            raise frames.FrameDamaged(0, str(error)) from error
        expected = segments.describe(
            self._number, self._first, head, self._found.index.tree, self._content, self._end, self._geometry
        )
        if footer.unsigned() != expected.unsigned():
            raise frames.FrameDamaged(8, "the segment's footer does not match its frames")
        return data

    def _frame_follows(self, file: BinaryIO, header: frames.Header | None) -> bool:
        file.seek(self._end)
        rest = file.read()
        return frames.find_header(rest, header.length if header else 1, self._found.head.size) is not None


def _rest_is_zero(file: BinaryIO) -> bool:
    at = file.tell()
    while chunk := file.read(_CHUNK):
        if chunk.count(0) != len(chunk):
            file.seek(at)
            return False
    return True
