"""It is responsible for what a log's folder promises beside its segments: files of records, and the watermark."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from libs.audit.log.findings import Findings, Status

_FRAMING = 40
_MAX_RECORD = 4 << 20
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


def read_records(data: bytes, magic: bytes, file: str, findings: Findings) -> Iterator[tuple[int, bytes]]:
    """Yield each whole record with its offset. What follows them is torn, or damage if what was synced later is whole.

    Records that were synced together with the one before them have their magic's last letter in lower case.
    """
    at = 0
    together = magic[:-1] + magic[-1:].lower()
    while (record := _record_at(data, at, magic) or _record_at(data, at, together)) is not None:
        yield at, record
        at += len(record) + _FRAMING
    if at == len(data):
        return
    later = data.find(magic, at + 1)
    while later >= 0 and _record_at(data, later, magic) is None:
        later = data.find(magic, later + 1)
    if later >= 0:
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


def _record_at(data: bytes, at: int, magic: bytes) -> bytes | None:
    end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
    if data[at : at + 4] != magic or not at + 8 <= end <= at + 8 + _MAX_RECORD or end + 32 > len(data):
        return None
    return data[at + 8 : end] if sha256(data[at:end]).digest() == data[end : end + 32] else None


def _mark(piece: bytes, slot: int) -> Mark | None:
    if len(piece) != _SLOT_SIZE or sha256(piece[:_SLOT_HASHED]).digest() != piece[_SLOT_HASHED:]:
        return None
    magic, *values = _MARK.unpack_from(piece)
    mark = Mark(*values)
    if magic != b"TMWM0001" or mark.generation % 2 != slot or any(piece[_MARK.size : _SLOT_HASHED]):
        return None
    return mark
