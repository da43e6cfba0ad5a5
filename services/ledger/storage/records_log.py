"""Files of records that are appended and synced before anything they say is acted on: notes, rejections, what is owed.

A record is `magic || u32 length || bytes || SHA-256 of those`. Of the records that are synced together, all but the
first have their magic's last letter in lower case. What a power cut leaves of them may begin with a hole; so where a
first one follows bytes that do not verify, that is damage, and anything else was never synced: nobody has acted on it,
and it is kept elsewhere and cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from libs.files import fsync_dir
from services.ledger.storage import lost_and_found
from services.ledger.storage.damage import LogBroken, LogDamaged

CHECKPOINTS = b"TMCK"
QUARANTINE = b"TMQR"
OWED = b"TMOW"
MAX_RECORD = 4 << 20
_PIECE = 1 << 20
_FRAMING = 4 + 4 + 32
_BEGINNING = QUARANTINE[:-1]
_BROKEN_OFF = _BEGINNING + b"\0"
"""What the beginning of a record's magic is stored as within a quarantined one."""


@dataclass(frozen=True, slots=True)
class Records:
    """What a file of records holds."""

    records: tuple[bytes, ...]
    end: int
    """Where the last whole record ends. What follows it is a part of what was being written."""


def read_each(path: Path, magic: bytes, take: Callable[[bytes], None], start: int = 0) -> int:
    """Hand over every record from `start` on, one at a time. Returns where the last whole one ends.

    A missing file is empty. Raises `LogDamaged` for damage that is not a torn tail.
    """
    end = start
    try:
        with path.open("rb") as file:
            file.seek(start)
            while (record := _next_record(file, magic)) is not None:
                take(record)
                end += len(record) + _FRAMING
            # Another one cannot begin before this one's end; what looks like it, in its length and first bytes, was
            # made to.
            later = _find_whole(file, end + _FRAMING, magic, magic)
    except FileNotFoundError:
        return 0
    if later is not None:
        raise LogDamaged(path.name, end, f"what was synced later is whole at byte {later}")
    return end


def read_whole(path: Path, magic: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield every record that is whole, with its offset, whatever lies before it: what a damaged file still holds."""
    with path.open("rb") as file:
        at: int | None = 0
        while at is not None:
            file.seek(at)
            record = _next_record(file, magic)
            if record is None:
                at = _find_whole(file, at + _FRAMING, magic, magic[:-1])
            else:
                yield at, record
                at += len(record) + _FRAMING


def read_end(path: Path, magic: bytes, most: int = 1 << 18) -> Records:
    """Read the records that lie whole in the last `most` bytes, and one at least where there is any, as `read_each`.

    For a file that grows with the log, whose last records say all. No record MUST hold what looks like another one.
    """
    start: int | None = 0
    if path.exists() and path.stat().st_size > most:
        with path.open("rb") as file:
            start = _find_whole(file, file.seek(-most, os.SEEK_END), magic, magic)
    if start is None:
        return read_end(path, magic, 2 * most)
    records: list[bytes] = []
    end = read_each(path, magic, records.append, start)
    return Records(tuple(records), end)


def read_some(path: Path, magic: bytes, start: int, most: int) -> Records:
    """Return at most so many records from `start` on, of a file whose records before its end are whole."""
    records: list[bytes] = []
    end = start
    with path.open("rb") as file:
        file.seek(start)
        while len(records) < most and (record := _next_record(file, magic)) is not None:
            records.append(record)
            end += len(record) + _FRAMING
    return Records(tuple(records), end)


class RecordsLog:
    """Appends to a file of records. Owned by one writer."""

    __slots__ = ("_broken", "_descriptor", "_end", "_magic", "_name", "saved")

    saved: Path | None
    """Where the bytes that were cut lie now."""

    def __init__(self, path: Path, magic: bytes, end: int) -> None:
        """Open the file after `read`, cutting what follows `end` after keeping a copy, and make that durable."""
        self._magic, self._name, self._end, self._broken = magic, path.name, end, False
        self.saved = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(self._descriptor).st_size > end:
                self.saved = lost_and_found.keep(path.parent, path, end)
            os.ftruncate(self._descriptor, end)
            os.fsync(self._descriptor)
            fsync_dir(path.parent)
        except OSError as error:
            os.close(self._descriptor)
            raise LogBroken(f"{path.name} could not be opened: {error.strerror}") from error

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self._end

    def append(self, records: Sequence[bytes]) -> None:
        """Add records. They ARE durable when this returns. Raises `LogBroken`, after which nothing more is taken."""
        if self._broken:
            raise LogBroken(f"{self._name} is broken since an earlier write")
        following = _following(self._magic)
        data = b"".join(encode(following if at else self._magic, record) for at, record in enumerate(records))
        try:
            write_all(self._descriptor, data, self._end)
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._broken = True
            raise LogBroken(f"{self._name} could not be written: {error.strerror}") from error
        self._end += len(data)

    def empty(self) -> None:
        """Remove every record, durably. Raises `LogBroken`, after which nothing more is taken."""
        try:
            os.ftruncate(self._descriptor, 0)
            os.fsync(self._descriptor)
        except OSError as error:
            self._broken = True
            raise LogBroken(f"{self._name} could not be emptied: {error.strerror}") from error
        self._end = 0

    def close(self) -> None:
        os.close(self._descriptor)


def encode(magic: bytes, record: bytes) -> bytes:
    """Return a record as it is stored."""
    if len(record) > MAX_RECORD:
        raise ValueError(f"a record has at most {MAX_RECORD} bytes")
    head = magic + len(record).to_bytes(4, "big") + record
    return head + sha256(head).digest()


def quarantined(stream_seq: int, why: int, message: bytes) -> bytes:
    """Return the record of a rejected message: its stream sequence, the reason's number, its bytes.

    Anyone may have written the message. Nowhere in the record can another one begin, or a torn write of this one would
    look like damage before that.
    """
    return (stream_seq.to_bytes(8, "big") + why.to_bytes(2, "big") + message).replace(_BEGINNING, _BROKEN_OFF)


def read_quarantined(record: bytes) -> tuple[int, int, bytes]:
    """Return what `quarantined` was given."""
    whole = record.replace(_BROKEN_OFF, _BEGINNING)
    return int.from_bytes(whole[:8], "big"), int.from_bytes(whole[8:10], "big"), whole[10:]


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write everything at an offset. Raises `OSError`; what was written before it is then unknown."""
    view, done = memoryview(data), 0
    while done < len(data):
        done += os.pwrite(descriptor, view[done:], offset + done)


def _following(magic: bytes) -> bytes:
    """With what a record begins that was synced together with the one before it."""
    return magic[:-1] + magic[-1:].lower()


def _next_record(file: BinaryIO, magic: bytes) -> bytes | None:
    """Return the record that begins where the file stands, if a whole one does."""
    head = file.read(8)
    length = int.from_bytes(head[4:], "big")
    if head[:4] not in (magic, _following(magic)) or length > MAX_RECORD:
        return None
    record, digest = file.read(length), file.read(32)
    return record if sha256(head + record).digest() == digest else None


def _find_whole(file: BinaryIO, start: int, magic: bytes, beginning: bytes) -> int | None:
    """Where, from `start` on, the next whole record begins that begins so: by the whole magic, one that was synced
    later than what lies before it; by all of it but the last letter, any.
    """
    at = start
    while True:
        file.seek(at)
        piece = file.read(_PIECE)
        found = piece.find(beginning)
        while found >= 0:
            file.seek(at + found)
            if _next_record(file, magic) is not None:
                return at + found
            found = piece.find(beginning, found + 1)
        if len(piece) < _PIECE:
            return None
        at += _PIECE - len(beginning) + 1
