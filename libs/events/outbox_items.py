"""Responsible for what the outbox remembers, item by item, and the bytes of each.

One record of the file holds the items that became durable together: `u8 type || u32 length || content`, repeated.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.events.batches import Batch, parse_batch
from libs.events.keyset import PreviousIssuer
from libs.events.records import HEADER_SIZE, Record
from libs.transparency.leaf import Kind

_ITEM = struct.Struct(">BI")
_OPENED = struct.Struct(">32sQ32sQ")
_PLACE = struct.Struct(">32sQ")
_ACKNOWLEDGED = struct.Struct(">32sQQ112s")
_TENANTS = struct.Struct(">I")
_NOBODY = bytes(32)


class OutboxDamaged(MeshError):
    """The outbox says something that no crash explains. Nothing is sent until an operator has looked."""

    code = Code.DATA_LOSS
    reason = "OUTBOX_DAMAGED"


@dataclass(frozen=True, slots=True)
class Opened:
    """A file begins: whose it is, how far that issuer has come, and whom it follows."""

    issuer: bytes
    last_seq: int
    previous: PreviousIssuer | None

    TYPE = 1

    def content(self) -> bytes:
        issuer, last_seq = (_NOBODY, 0) if self.previous is None else (self.previous.issuer, self.previous.last_seq)
        return _OPENED.pack(self.issuer, self.last_seq, issuer, last_seq)


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """What must be known of a record until it is done with."""

    kind: Kind
    commitment: bytes
    tenant: str | None
    size: int
    """Of the record, bytes."""

    @classmethod
    def of(cls, record: Record, tenant: str | None) -> RecordFacts:
        return cls(record.header.kind, record.header.commitment, tenant, HEADER_SIZE + len(record.body))


@dataclass(frozen=True, slots=True)
class Stored:
    """A batch that may be on its way: the very bytes that every resend repeats."""

    issuer: bytes
    first_seq: int
    message: bytes
    records: tuple[RecordFacts, ...]

    TYPE = 2

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.records) - 1

    def content(self) -> bytes:
        tenants = "\n".join(facts.tenant or "" for facts in self.records).encode()
        return _TENANTS.pack(len(tenants)) + tenants + self.message


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The ledger holds a record durably; this is its verified statement."""

    issuer: bytes
    issuer_seq: int
    signer_epoch: int
    statement: bytes

    TYPE = 3

    def content(self) -> bytes:
        return _ACKNOWLEDGED.pack(self.issuer, self.issuer_seq, self.signer_epoch, self.statement)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The ledger refused a record; it must not be sent again."""

    issuer: bytes
    issuer_seq: int
    reason: str

    TYPE = 4

    def content(self) -> bytes:
        return _PLACE.pack(self.issuer, self.issuer_seq) + self.reason.encode()


@dataclass(frozen=True, slots=True)
class Cut:
    """What was withheld for a record was released, or an amendment says that it was not."""

    issuer: bytes
    issuer_seq: int

    TYPE = 5

    def content(self) -> bytes:
        return _PLACE.pack(self.issuer, self.issuer_seq)


Item = Opened | Stored | Acknowledged | Rejected | Cut


def stored(message: bytes, batch: Batch, tenants: Iterable[str | None]) -> Stored:
    """Return the item of a batch; `tenants` are those of its records, in order."""
    facts = tuple(RecordFacts.of(record, tenant) for record, tenant in zip(batch.records, tenants, strict=True))
    return Stored(batch.issuer, batch.first_seq, message, facts)


def encode_items(items: Iterable[Item]) -> bytes:
    """Return one record's payload."""
    parts = []
    for item in items:
        content = item.content()
        parts.append(_ITEM.pack(item.TYPE, len(content)))
        parts.append(content)
    return b"".join(parts)


def decode_items(payload: bytes) -> Iterator[Item]:
    """Read one record's payload. Raises `OutboxDamaged`: its hash was right, so this is no crash."""
    position = 0
    try:
        while position < len(payload):
            number, length = _ITEM.unpack_from(payload, position)
            position += _ITEM.size
            content = payload[position : position + length]
            if len(content) != length:
                raise OutboxDamaged("an item is longer than its record")
            yield _DECODERS[number](content)
            position += length
    except (struct.error, KeyError, ValueError) as error:
        raise OutboxDamaged("an item of the outbox is not one") from error


def _decode_opened(content: bytes) -> Opened:
    issuer, last_seq, previous, previous_last = _OPENED.unpack(content)
    return Opened(issuer, last_seq, None if previous_last == 0 else PreviousIssuer(previous, previous_last))


def _decode_stored(content: bytes) -> Stored:
    (length,) = _TENANTS.unpack_from(content)
    names = content[_TENANTS.size : _TENANTS.size + length].decode().split("\n")
    message = content[_TENANTS.size + length :]
    try:
        return stored(message, parse_batch(message), (name or None for name in names))
    except MeshError as error:
        raise OutboxDamaged("a stored batch is not one") from error


def _decode_acknowledged(content: bytes) -> Acknowledged:
    return Acknowledged(*_ACKNOWLEDGED.unpack(content))


def _decode_rejected(content: bytes) -> Rejected:
    issuer, issuer_seq = _PLACE.unpack_from(content)
    return Rejected(issuer, issuer_seq, content[_PLACE.size :].decode())


def _decode_cut(content: bytes) -> Cut:
    return Cut(*_PLACE.unpack(content))


_DECODERS: Mapping[int, Callable[[bytes], Item]] = {
    Opened.TYPE: _decode_opened,
    Stored.TYPE: _decode_stored,
    Acknowledged.TYPE: _decode_acknowledged,
    Rejected.TYPE: _decode_rejected,
    Cut.TYPE: _decode_cut,
}
