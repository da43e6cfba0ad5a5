"""Responsible for the batch message: up to 256 consecutive records of one issuer under one signature.

One signature for many records is what makes the log affordable; one NATS message holds one batch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.errors import Code, MeshError
from libs.events.records import HEADER_SIZE, ISSUER_SIZE, Record, parse_header
from libs.transparency.chain import domain

MAX_RECORDS = 256
MAX_MESSAGE_BYTES = 1_000_000
SIGNATURE_SIZE = 64
PREFIX_SIZE = 48
_PREFIX = struct.Struct(">4sH2sQ32s")
_MAGIC = b"TMB1"
_RESERVED = bytes(2)


class BatchMalformed(MeshError):
    """The bytes are not a batch message."""

    code = Code.INVALID_ARGUMENT
    reason = "BATCH_MALFORMED"


class BatchSignatureInvalid(MeshError):
    """The batch is not signed by the issuer's log key."""

    code = Code.UNAUTHENTICATED
    reason = "BATCH_SIGNATURE_INVALID"


@dataclass(frozen=True, slots=True)
class Batch:
    """A parsed message. Nothing in it is verified until `verify_batch` returns."""

    issuer: bytes
    first_seq: int
    records: tuple[Record, ...]
    digest: bytes
    """SHA-256 of everything before the signature."""
    signature: bytes

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.records) - 1

    def numbered(self) -> list[tuple[int, Record]]:
        """Return each record with its issuer sequence number."""
        return list(enumerate(self.records, self.first_seq))


def encode_batch(issuer: bytes, first_seq: int, records: Sequence[Record], key: Ed25519PrivateKey) -> bytes:
    """Return the signed message. The records must be numbered first_seq, first_seq + 1, ..."""
    if len(issuer) != ISSUER_SIZE or not 1 <= len(records) <= MAX_RECORDS or first_seq < 1:
        raise ValueError(f"a batch has one issuer and 1 to {MAX_RECORDS} records numbered from 1")
    parts = [_PREFIX.pack(_MAGIC, len(records), _RESERVED, first_seq, issuer)]
    parts.extend(record.encode() for record in records)
    content = b"".join(parts)
    if len(content) + SIGNATURE_SIZE > MAX_MESSAGE_BYTES:
        raise ValueError(f"a batch has at most {MAX_MESSAGE_BYTES} bytes")
    return content + key.sign(_signed(sha256(content).digest()))


def parse_batch(message: bytes) -> Batch:
    """Read a message strictly. Raises `BatchMalformed` or `RecordMalformed`."""
    if not PREFIX_SIZE + HEADER_SIZE + SIGNATURE_SIZE < len(message) <= MAX_MESSAGE_BYTES:
        raise BatchMalformed(f"{len(message)} bytes are no batch")
    magic, count, reserved, first_seq, issuer = _PREFIX.unpack_from(message)
    if magic != _MAGIC or reserved != _RESERVED:
        raise BatchMalformed("not a batch of version 1")
    if not 1 <= count <= MAX_RECORDS or not 1 <= first_seq <= 2**64 - count:
        raise BatchMalformed("count or first sequence out of range")
    content, signature = message[:-SIGNATURE_SIZE], message[-SIGNATURE_SIZE:]
    records = []
    position = PREFIX_SIZE
    for _ in range(count):
        body_at = position + HEADER_SIZE
        if body_at > len(content):
            raise BatchMalformed("the batch ends before its last record")
        header = parse_header(content[position:body_at])
        position = body_at + header.body_length
        if position > len(content):
            raise BatchMalformed("the batch ends before its last record")
        records.append(Record(header, content[body_at:position]))
    if position != len(content):
        raise BatchMalformed("bytes after the last record")
    return Batch(issuer, first_seq, tuple(records), sha256(content).digest(), signature)


def verify_batch(batch: Batch, key: Ed25519PublicKey) -> None:
    """Check the signature. Raises `BatchSignatureInvalid`. That the key is the issuer's is for the caller to know."""
    try:
        key.verify(batch.signature, _signed(batch.digest))
    except InvalidSignature as error:
        raise BatchSignatureInvalid("the batch is not signed by that log key") from error


def _signed(digest: bytes) -> bytes:
    return domain("batch") + digest
