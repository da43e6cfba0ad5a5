"""Responsible for one entry's bytes: canonical, committed to, sealed, and opened again.

The issuer seals, so outbox, broker, log and archives hold ciphertext. Each (issuer, sequence) is sealed exactly once; a
retry sends the same bytes. Integers are big-endian and unsigned, reserved bytes are zero.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from libs import jcs
from libs.errors import Code, MeshError
from libs.events.vault import PUBLIC_EPOCH, PUBLIC_VAULT_ID, VaultKey
from libs.transparency.leaf import Kind

MAX_ENTRY_BYTES = 512 * 1024
HEADER_SIZE = 64
SALT_SIZE = 32
ISSUER_SIZE = 32
FIRST_PREVIOUS = bytes(32)

_GCM_TAG_SIZE = 16
MAX_BODY_BYTES = SALT_SIZE + MAX_ENTRY_BYTES + _GCM_TAG_SIZE
_ENTRY_VERSION = 1
_ENTRY_MEMBERS = frozenset({"v", "kind", "issuer", "issuer_seq", "prev", "tenant", "body"})
_HEADER = struct.Struct(">IB3sI4s16s32s")
_RESERVED, _MORE_RESERVED = bytes(3), bytes(4)
_KINDS = {int(kind): kind for kind in Kind}
# A record key is used once, so one nonce for all is no repetition.
_NONCE = bytes(12)


class EntryTooLarge(MeshError):
    """An entry's canonical form is over the limit."""

    code = Code.INVALID_ARGUMENT
    reason = "ENTRY_TOO_LARGE"


class EntryMalformed(MeshError):
    """The bytes are not a canonical entry, or not the one that its record announces."""

    code = Code.INVALID_ARGUMENT
    reason = "ENTRY_MALFORMED"


class RecordMalformed(MeshError):
    """The bytes are not a record."""

    code = Code.INVALID_ARGUMENT
    reason = "RECORD_MALFORMED"


class RecordNotOpened(MeshError):
    """The body is not what the issuer sealed for this place: altered, moved, or under another key."""

    code = Code.DATA_LOSS
    reason = "RECORD_NOT_OPENED"


class CommitmentMismatch(MeshError):
    """The body opens, but is not the one that its record commits to."""

    code = Code.DATA_LOSS
    reason = "COMMITMENT_MISMATCH"


@dataclass(frozen=True, slots=True)
class Entry:
    """What an issuer says, once."""

    kind: Kind
    issuer: bytes
    issuer_seq: int
    previous: bytes
    """The issuer's previous commitment, zeros at first."""
    tenant: str | None
    """The tenant's random id; none in the public vault."""
    body: Mapping[str, Any]

    def canonical(self) -> bytes:
        """Return the bytes that are committed to. Raises `EntryTooLarge`, `JsonMalformed` or `EntryMalformed`."""
        members = {
            "v": _ENTRY_VERSION,
            "kind": int(self.kind),
            "issuer": self.issuer.hex(),
            "issuer_seq": self.issuer_seq,
            "prev": self.previous.hex(),
            "tenant": self.tenant,
            "body": dict(self.body),
        }
        # What the ledger would not read must not take a sequence number.
        data = jcs.dumps_readable(members)
        _require_size(data)
        _read(members)
        return data


def parse_entry(canonical: bytes) -> Entry:
    """Read a canonical entry strictly. Raises `EntryTooLarge`, `JsonMalformed` or `EntryMalformed`."""
    _require_size(canonical)
    try:
        value = jcs.loads_canonical(canonical)
    except jcs.JsonNotCanonical as error:
        raise EntryMalformed("the entry is not in its canonical form") from error
    return _read(value)


def _require_size(canonical: bytes) -> None:
    if len(canonical) > MAX_ENTRY_BYTES:
        raise EntryTooLarge(f"an entry has at most {MAX_ENTRY_BYTES} bytes, not {len(canonical)}")


def _read(value: Any) -> Entry:
    """Return the entry that a JSON value is. Raises `EntryMalformed`."""
    if not isinstance(value, dict) or value.keys() != _ENTRY_MEMBERS:
        raise EntryMalformed("not an entry")
    if value["v"] != _ENTRY_VERSION or isinstance(value["v"], bool):
        raise EntryMalformed("not an entry of version 1")
    tenant, body, issuer_seq = value["tenant"], value["body"], value["issuer_seq"]
    if not isinstance(body, dict) or not (tenant is None or (isinstance(tenant, str) and tenant)):
        raise EntryMalformed("body must be an object, tenant an id or null")
    if type(issuer_seq) is not int or issuer_seq < 1:
        raise EntryMalformed("issuer_seq starts at 1")
    return Entry(
        _kind(value["kind"], EntryMalformed),
        _hash(value["issuer"]),
        issuer_seq,
        _hash(value["prev"]),
        tenant,
        body,
    )


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What travels in clear before a body; the body is bound to it."""

    body_length: int
    kind: Kind
    vault_epoch: int
    vault_id: bytes
    commitment: bytes

    def encode(self) -> bytes:
        return _HEADER.pack(
            self.body_length, self.kind, _RESERVED, self.vault_epoch, _MORE_RESERVED, self.vault_id, self.commitment
        )

    @property
    def is_public(self) -> bool:
        return self.vault_id == PUBLIC_VAULT_ID


def parse_header(data: bytes) -> RecordHeader:
    """Read 64 bytes. Raises `RecordMalformed`."""
    if len(data) != HEADER_SIZE:
        raise RecordMalformed(f"a record header has {HEADER_SIZE} bytes, not {len(data)}")
    length, number, reserved, epoch, more_reserved, vault_id, commitment = _HEADER.unpack(data)
    if reserved != _RESERVED or more_reserved != _MORE_RESERVED:
        raise RecordMalformed("reserved bytes are not zero")
    header = RecordHeader(length, _kind(number, RecordMalformed), epoch, vault_id, commitment)
    if not SALT_SIZE < length <= MAX_BODY_BYTES:
        raise RecordMalformed(f"a body of {length} bytes is none")
    if header.is_public != (epoch == PUBLIC_EPOCH):
        raise RecordMalformed("epoch 0 is the public vault's, and no other's")
    if header.kind.is_tenants == header.is_public:
        raise RecordMalformed(f"kind {header.kind.name} does not lie in that vault")
    return header


@dataclass(frozen=True, slots=True)
class Record:
    """A header and its body, as published and as logged."""

    header: RecordHeader
    body: bytes

    def encode(self) -> bytes:
        return self.header.encode() + self.body


@dataclass(frozen=True, slots=True)
class Opened:
    """What a body holds."""

    salt: bytes
    canonical: bytes


def commit_to(salt: bytes, canonical: bytes) -> bytes:
    """Return the commitment: all that the log shows of an entry. Without the salt it tells nothing."""
    return sha256(salt + canonical).digest()


def seal(canonical: bytes, kind: Kind, issuer: bytes, issuer_seq: int, salt: bytes, vault: VaultKey | None) -> Record:
    """Seal an entry into a tenant's vault, or lay it open into the public one.

    MUST be called once for one (issuer, issuer_seq): the record key is single use.
    """
    if len(salt) != SALT_SIZE:
        raise ValueError(f"a salt has {SALT_SIZE} bytes")
    _require_size(canonical)
    if kind.is_tenants != (vault is not None):
        raise ValueError(f"kind {kind.name} does not lie in that vault")
    content = salt + canonical
    commitment = commit_to(salt, canonical)
    if vault is None:
        return Record(RecordHeader(len(content), kind, PUBLIC_EPOCH, PUBLIC_VAULT_ID, commitment), content)
    header = RecordHeader(len(content) + _GCM_TAG_SIZE, kind, vault.epoch, vault.vault_id, commitment)
    cipher = AESGCM(vault.record_key(issuer, issuer_seq))
    return Record(header, cipher.encrypt(_NONCE, content, _associated(header, issuer, issuer_seq)))


def open_record(record: Record, issuer: bytes, issuer_seq: int, vault: VaultKey | None) -> Opened:
    """Open a body and check it against its commitment. Raises `RecordNotOpened` or `CommitmentMismatch`.

    `vault` must be the key of the header's vault and epoch, none for the public vault.
    """
    header = record.header
    place = (PUBLIC_VAULT_ID, PUBLIC_EPOCH) if vault is None else (vault.vault_id, vault.epoch)
    if (header.vault_id, header.vault_epoch) != place or len(record.body) != header.body_length:
        raise RecordNotOpened("the record lies in another vault, or its body was cut")
    content = record.body
    if vault is not None:
        try:
            cipher = AESGCM(vault.record_key(issuer, issuer_seq))
            content = cipher.decrypt(_NONCE, record.body, _associated(header, issuer, issuer_seq))
        except InvalidTag as error:
            raise RecordNotOpened("the body was not sealed for this place with this key") from error
    if not hmac.compare_digest(sha256(content).digest(), header.commitment):
        raise CommitmentMismatch("the body is not the one that was committed to")
    return Opened(content[:SALT_SIZE], content[SALT_SIZE:])


def verify_entry(opened: Opened, header: RecordHeader, issuer: bytes, issuer_seq: int, tenant: str | None) -> Entry:
    """Return the entry if it says what its record and its vault's owner say. Raises `EntryMalformed` and its kin."""
    entry = parse_entry(opened.canonical)
    if (entry.kind, entry.issuer, entry.issuer_seq, entry.tenant) != (header.kind, issuer, issuer_seq, tenant):
        raise EntryMalformed("kind, issuer, sequence or tenant differ from the record's")
    return entry


def _associated(header: RecordHeader, issuer: bytes, issuer_seq: int) -> bytes:
    return issuer + issuer_seq.to_bytes(8, "big") + header.encode()


def _kind(number: Any, refusal: type[MeshError]) -> Kind:
    if type(number) is not int:
        raise refusal("kind must be a number")
    kind = _KINDS.get(number)
    if kind is None:
        raise refusal(f"unknown kind {number}")
    return kind


def _hash(text: Any) -> bytes:
    if not isinstance(text, str) or len(text) != 2 * ISSUER_SIZE or text.lower() != text:
        raise EntryMalformed("issuer and prev are 64 lower-case hex characters")
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise EntryMalformed("issuer and prev are 64 lower-case hex characters") from error
