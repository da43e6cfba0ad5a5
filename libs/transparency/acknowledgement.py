"""The ledger's promise that an entry is durable, and at which index.

The statements of one commit form an RFC 6962 tree under one signature, so a commit costs one signature and each holder
still sees its own statement only.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.errors import Code, MeshError
from libs.transparency import leaf, merkle
from libs.transparency.chain import domain

STATEMENT_SIZE = 112
MAX_COUNT = 4096
_MAX_PATH = 12
_LAYOUT = struct.Struct(">4s4sQQQQQ32s32s")
_INDEX = struct.Struct(">8xQ96x")
_MAGIC = b"TMA1"
_RESERVED = bytes(4)


class AcknowledgementInvalid(MeshError):
    """The values are no acknowledgement by this ledger's key."""

    code = Code.PERMISSION_DENIED
    reason = "ACKNOWLEDGEMENT_INVALID"


@dataclass(frozen=True, slots=True)
class Statement:
    """What the ledger says about one entry."""

    index: int
    time_ms: int
    vault_seq: int
    issuer_seq: int
    epoch: int
    """The writer's epoch when it committed the entry; a re-issued acknowledgement keeps it."""
    issuer: bytes
    leaf_hash: bytes

    def data(self) -> bytes:
        """Return the 112 bytes that are signed."""
        return pack_statement(
            self.index, self.time_ms, self.vault_seq, self.issuer_seq, self.epoch, self.issuer, self.leaf_hash
        )

    @classmethod
    def parse(cls, data: bytes) -> Statement:
        """Read a statement strictly. Raises `AcknowledgementInvalid`."""
        if len(data) != STATEMENT_SIZE:
            raise AcknowledgementInvalid(f"a statement has {STATEMENT_SIZE} bytes")
        magic, reserved, *values = _LAYOUT.unpack(data)
        if magic != _MAGIC or reserved != _RESERVED:
            raise AcknowledgementInvalid("not a statement of version 1")
        return cls(*values)


def pack_statement(
    index: int, time_ms: int, vault_seq: int, issuer_seq: int, epoch: int, issuer: bytes, leaf_hash: bytes
) -> bytes:
    """Return what `Statement.data` does, without making a statement."""
    return _LAYOUT.pack(_MAGIC, _RESERVED, index, time_ms, vault_seq, issuer_seq, epoch, issuer, leaf_hash)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A statement with all that proves it."""

    statement: bytes
    leaf_data: bytes
    first: int
    count: int
    path: tuple[bytes, ...]
    signer_epoch: int
    signature: bytes


def acknowledge(
    entries: Sequence[tuple[bytes, bytes]], *, log_id: bytes, signer_epoch: int, key: Ed25519PrivateKey
) -> list[Acknowledgement]:
    """Sign the data of consecutive statements, each given with its leaf data. Returns one acknowledgement each, in
    order.

    The caller MUST have made the entries durable first. A lost acknowledgement is issued again by passing its one
    statement alone.
    """
    if not 1 <= len(entries) <= MAX_COUNT:
        raise ValueError(f"one signature covers 1 to {MAX_COUNT} statements")
    indices = [_INDEX.unpack(statement)[0] for statement, _ in entries]
    first, count = indices[0], len(indices)
    if indices != list(range(first, first + count)):
        raise ValueError("the statements of one signature are consecutive")
    tree = merkle.CompleteTree([merkle.leaf_hash(statement) for statement, _ in entries])
    signature = key.sign(_signed(log_id, signer_epoch, first, count, tree.root))
    return [
        Acknowledgement(
            statement=statement,
            leaf_data=leaf_data,
            first=first,
            count=count,
            path=path,
            signer_epoch=signer_epoch,
            signature=signature,
        )
        for (statement, leaf_data), path in zip(entries, tree.paths(), strict=True)
    ]


class LastSignature:
    """The signature that verified last: the acknowledgements of one commit all bear the same.

    It vouches for the very same bytes under the very same key; whatever differs in one of them is verified itself.
    """

    __slots__ = ("_verified",)

    def __init__(self) -> None:
        self._verified: tuple[bytes, bytes, bytes] | None = None

    def verify(self, public_key: bytes, signature: bytes, signed: bytes) -> None:
        """Raises `AcknowledgementInvalid`."""
        if (public_key, signature, signed) == self._verified:
            return
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
        except (InvalidSignature, ValueError) as error:
            raise AcknowledgementInvalid("the signature is wrong") from error
        self._verified = (public_key, signature, signed)


def verify_acknowledgement(
    acknowledgement: Acknowledgement, ack_public_key: bytes, log_id: bytes, last: LastSignature | None = None
) -> Statement:
    """Return the statement that the ledger signed, after checking that it is about `leaf_data`.

    `ack_public_key` is the raw Ed25519 key that the ledger's evidence names. Does not check that `signer_epoch` is not
    below the highest one seen, nor that the leaf is the one the holder sent: only the holder knows. Who reads many
    passes the same `last` with each. Raises `AcknowledgementInvalid`.
    """
    statement = Statement.parse(acknowledgement.statement)
    position = statement.index - acknowledgement.first
    if not 1 <= acknowledgement.count <= MAX_COUNT or not 0 <= position < acknowledgement.count:
        raise AcknowledgementInvalid("the statement is outside what the signature covers")
    if len(acknowledgement.path) > _MAX_PATH:
        raise AcknowledgementInvalid(f"a path has at most {_MAX_PATH} hashes")
    if not 0 <= acknowledgement.first < 2**64 or not 0 <= acknowledgement.signer_epoch < 2**64:
        raise AcknowledgementInvalid("index and epoch are u64")
    try:
        public = leaf.parse(acknowledgement.leaf_data)
        root = merkle.root_from_path(
            merkle.leaf_hash(acknowledgement.statement), position, acknowledgement.count, acknowledgement.path
        )
    except (leaf.LeafMalformed, merkle.ProofInvalid) as error:
        raise AcknowledgementInvalid(f"the leaf or the path is wrong: {error}") from error
    if merkle.leaf_hash(acknowledgement.leaf_data) != statement.leaf_hash:
        raise AcknowledgementInvalid("the statement is about another leaf")
    if (public.issuer, public.issuer_seq) != (statement.issuer, statement.issuer_seq):
        raise AcknowledgementInvalid("the statement names another issuer or number than its leaf")
    signed = _signed(log_id, acknowledgement.signer_epoch, acknowledgement.first, acknowledgement.count, root)
    (last or LastSignature()).verify(ack_public_key, acknowledgement.signature, signed)
    return statement


def _signed(log_id: bytes, signer_epoch: int, first: int, count: int, root: bytes) -> bytes:
    return domain("ack") + log_id + struct.pack(">QQI", signer_epoch, first, count) + root
