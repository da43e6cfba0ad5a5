"""It is responsible for what a log's folder promises beside its segments: files of records, and the watermark."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO

from libs.audit.log.findings import Findings, Status

_FRAMING = 40
_MAX_RECORD = 4 << 20
_PIECE = 1 << 20
_SLOT_SIZE = 512
_SLOT_HASHED = 480
_MARK = struct.Struct(">8sQQQ32s32s")


@dataclass(frozen=True, slots=True)
class Mark:
    """A size that was durable, with the chain head and root there."""

    generation: int
    size: int
    epoch: int
    chain: bytes
    root: bytes


def read_records(stored: BinaryIO, magic: bytes, file: str, findings: Findings) -> Iterator[tuple[int, bytes]]:
    """Yield each whole record with its offset. What follows them is torn, or damage if what was synced later is whole.

    Records that were synced together with the one before them have their magic's last letter in lower case. A record or
    a piece of `stored` is held at a time; what is appended meanwhile is not looked at.
    """
    at, size = 0, stored.seek(0, os.SEEK_END)
    together = magic[:-1] + magic[-1:].lower()
    while (record := _record_at(stored, at, size, magic, together)) is not None:
        yield at, record
        at += len(record) + _FRAMING
    later = next((each for each in _places(stored, at + 1, size, magic) if _is_record(stored, each, size, magic)), None)
    if at == size or stored.seek(0, os.SEEK_END) < size:
        return  # A ledger that has said all that it owes empties the file, also while it is read here.
    if later is not None:
        findings.add(Status.DAMAGED, file, at, f"no record, though a later one is whole at byte {later}")
    else:
        findings.add(Status.TORN, file, at, "the last record was cut short")


def read_watermark(data: bytes, file: str, findings: Findings) -> Mark | None:
    """Return the newest mark of two slots; one that was never written is zeros."""
    marks = []
    for slot in range(2):
        piece = data[slot * _SLOT_SIZE : (slot + 1) * _SLOT_SIZE]
        mark = _mark(piece, slot)
        if mark is not None:
            marks.append(mark)
        elif piece.strip(b"\0"):
            findings.add(Status.DAMAGED, file, slot * _SLOT_SIZE, "the slot holds no mark of version 1")
    if len(data) > 2 * _SLOT_SIZE:
        findings.add(Status.DAMAGED, file, 2 * _SLOT_SIZE, "bytes follow the second slot")
    return max(marks, key=lambda mark: mark.generation, default=None)


def _record_at(stored: BinaryIO, at: int, size: int, *magics: bytes) -> bytes | None:
    stored.seek(at)
    head = stored.read(8)
    length = int.from_bytes(head[4:], "big")
    if head[:4] not in magics or length > _MAX_RECORD or at + length + _FRAMING > size:
        return None
    data = head + stored.read(length)
    return data[8:] if sha256(data).digest() == stored.read(32) else None


def _is_record(stored: BinaryIO, at: int, size: int, magic: bytes) -> bool:
    return _record_at(stored, at, size, magic) is not None


def _places(stored: BinaryIO, start: int, end: int, sought: bytes) -> Iterator[int]:
    """Yield where these bytes stand. Whoever takes the places may move about in `stored` meanwhile."""
    for begin in range(start, end, _PIECE):
        stored.seek(begin)
        piece = stored.read(_PIECE + len(sought) - 1)
        yield from (begin + found.start() for found in re.finditer(re.escape(sought), piece))


def _mark(piece: bytes, slot: int) -> Mark | None:
    if len(piece) != _SLOT_SIZE or sha256(piece[:_SLOT_HASHED]).digest() != piece[_SLOT_HASHED:]:
        return None
    magic, *values = _MARK.unpack_from(piece)
    mark = Mark(*values)
    if magic != b"TMWM0001" or mark.generation % 2 != slot or any(piece[_MARK.size : _SLOT_HASHED]):
        return None
    return mark
