"""Responsible for the record form of append-only files: `magic || u32 length || bytes || SHA-256(all before)`.

A writer MUST sync each record before it writes the next. Then only the last record can be torn, and anything wrong
before it is damage, which is never cut.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass
from hashlib import sha256

from libs.errors import Code, MeshError

MAGIC_SIZE = 4
_HASH_SIZE = 32
_HEAD = struct.Struct(">4sI")
OVERHEAD = _HEAD.size + _HASH_SIZE
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024


class JournalDamaged(MeshError):
    """A record is wrong and whole ones follow it: no crash does that."""

    code = Code.DATA_LOSS
    reason = "JOURNAL_DAMAGED"


@dataclass(frozen=True, slots=True)
class Scan:
    """What a file holds."""

    payloads: tuple[bytes, ...]
    length: int
    """Bytes of whole records; whatever follows is a torn tail."""


def encode_record(magic: bytes, payload: bytes) -> bytes:
    """Return the bytes to append."""
    if len(magic) != MAGIC_SIZE or len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a magic has {MAGIC_SIZE} bytes, a payload at most {MAX_PAYLOAD_BYTES}")
    content = _HEAD.pack(magic, len(payload)) + payload
    return content + sha256(content).digest()


def scan(magic: bytes, data: bytes) -> Scan:
    """Read records to the end or to a torn tail. Raises `JournalDamaged` when a whole record follows a wrong one."""
    payloads = []
    position = 0
    while (payload := _record_at(magic, data, position)) is not None:
        payloads.append(payload)
        position += OVERHEAD + len(payload)
    later = data.find(magic, position + 1)
    while later != -1:
        if _record_at(magic, data, later) is not None:
            raise JournalDamaged(f"the record at byte {position} is damaged, one at byte {later} is whole")
        later = data.find(magic, later + 1)
    return Scan(tuple(payloads), position)


def _record_at(magic: bytes, data: bytes, position: int) -> bytes | None:
    body_at = position + _HEAD.size
    if body_at > len(data):
        return None
    found, length = _HEAD.unpack_from(data, position)
    hash_at = body_at + length
    if found != magic or length > MAX_PAYLOAD_BYTES or hash_at + _HASH_SIZE > len(data):
        return None
    expected = sha256(memoryview(data)[position:hash_at]).digest()
    if not hmac.compare_digest(expected, data[hash_at : hash_at + _HASH_SIZE]):
        return None
    return data[body_at:hash_at]
