"""C2SP cosignatures: a witness's word that a checkpoint extends every tree of that log that it saw before.

Follows https://c2sp.org/tlog-cosignature: Ed25519 (signature type 0x04) and ML-DSA-44 (0x06). Whom to believe is the
reader's: a quorum of witnesses whose keys it knows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from libs.errors import Code, MeshError
from libs.transparency import checkpoint as checkpoints
from libs.transparency import note as notes
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.note import NoteMalformed, Signature

_U64 = struct.Struct(">Q")
_SUBTREE_LABEL = b"subtree/v1\n\x00"
_LATEST = 2**63 - 1


class CosignatureInvalid(MeshError):
    """The note does not carry what the witness must have signed."""

    code = Code.PERMISSION_DENIED
    reason = "COSIGNATURE_INVALID"


class QuorumNotReached(MeshError):
    """Fewer witnesses cosigned the checkpoint than were asked for."""

    code = Code.PERMISSION_DENIED
    reason = "QUORUM_NOT_REACHED"


class Algorithm(IntEnum):
    """Signature types of cosignatures."""

    ED25519 = 4
    ML_DSA_44 = 6


_KEY_SIZES = {Algorithm.ED25519: 32, Algorithm.ML_DSA_44: 1312}


@dataclass(frozen=True, slots=True)
class CosignerKey:
    """A witness's name and one of its public keys."""

    name: str
    algorithm: Algorithm
    public_key: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != _KEY_SIZES[self.algorithm]:
            raise NoteMalformed(f"this kind of key has {_KEY_SIZES[self.algorithm]} bytes")

    @property
    def key_id(self) -> bytes:
        return notes.key_id_of(self.name, self._typed)

    def text(self) -> str:
        """Return the key in the text form of verifier keys."""
        return notes.key_text(self.name, self._typed)

    @classmethod
    def parse(cls, text: str) -> CosignerKey:
        """Read the text form. Raises `NoteMalformed`."""
        name, typed = notes.parse_key(text)
        try:
            algorithm = Algorithm(typed[0])
        except (ValueError, IndexError) as error:
            raise NoteMalformed("only Ed25519 (4) and ML-DSA-44 (6) cosigners are known") from error
        return cls(name, algorithm, typed[1:])

    def verify(self, signature: bytes, tree: Checkpoint, time: int) -> None:
        """Raises `InvalidSignature`."""
        if self.algorithm is Algorithm.ED25519:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, _ed25519_message(tree, time))
        else:
            message = _ml_dsa_message(tree, time, self.name)
            MLDSA44PublicKey.from_public_bytes(self.public_key).verify(signature, message)

    @property
    def _typed(self) -> bytes:
        return bytes([self.algorithm]) + self.public_key


def cosigner_key(name: str, key: Ed25519PrivateKey | MLDSA44PrivateKey) -> CosignerKey:
    """Return the public side of a witness's key."""
    algorithm = Algorithm.ED25519 if isinstance(key, Ed25519PrivateKey) else Algorithm.ML_DSA_44
    return CosignerKey(name, algorithm, key.public_key().public_bytes_raw())


def cosign(tree: Checkpoint, name: str, key: Ed25519PrivateKey | MLDSA44PrivateKey, time: int) -> Signature:
    """Return a witness's signature. `time` is in seconds since 1970.

    The caller MUST have verified that the tree extends the last one that it cosigned, and have that durable.
    """
    if isinstance(key, Ed25519PrivateKey):
        signed = key.sign(_ed25519_message(tree, time))
    else:
        signed = key.sign(_ml_dsa_message(tree, time, name))
    return Signature(name, cosigner_key(name, key).key_id, _U64.pack(time) + signed)


def verify_cosignature(signed: bytes, key: CosignerKey) -> int:
    """Return when the witness cosigned this checkpoint, in seconds since 1970.

    Raises `NoteMalformed`, `CheckpointMalformed` or `CosignatureInvalid`.
    """
    tree = checkpoints.parse(signed)
    own = [line for line in notes.parse(signed).signatures if (line.name, line.key_id) == (key.name, key.key_id)]
    if not own:
        raise CosignatureInvalid(f"the checkpoint has no cosignature by {key.name}")
    return max(_verify_line(line, key, tree) for line in own)


def verify_quorum(signed: bytes, keys: Sequence[CosignerKey], needed: int) -> tuple[str, ...]:
    """Return the names of the witnesses that cosigned. Raises `QuorumNotReached`, and what a malformed note raises.

    One key under two names, or one name with two keys, counts once: an Ed25519 cosignature does not say by whom it is.
    """
    witnesses: list[list[CosignerKey]] = []
    for key in keys:
        try:
            verify_cosignature(signed, key)
        except CosignatureInvalid:
            continue
        same = [known for known in witnesses if any(_are_one(key, other) for other in known)]
        witnesses = [known for known in witnesses if known not in same] + [sum(same, [key])]
    if len(witnesses) < needed:
        raise QuorumNotReached(f"{len(witnesses)} of the witnesses known here cosigned, {needed} are needed")
    return tuple(sorted(min(key.name for key in known) for known in witnesses))


def attach(signed: bytes, cosignatures: Sequence[Signature]) -> bytes:
    """Return the note with further signature lines."""
    return signed + "".join(each.line() for each in cosignatures).encode()


def _are_one(key: CosignerKey, other: CosignerKey) -> bool:
    return key.name == other.name or key.public_key == other.public_key


def _verify_line(line: Signature, key: CosignerKey, tree: Checkpoint) -> int:
    try:
        (time,) = _U64.unpack_from(line.signature)
        key.verify(line.signature[_U64.size :], tree, time)
    except (InvalidSignature, ValueError, struct.error) as error:
        raise CosignatureInvalid(f"the cosignature by {key.name} is wrong") from error
    if time > _LATEST:
        raise CosignatureInvalid(f"the cosignature by {key.name} has no possible time")
    return int(time)


def _ed25519_message(tree: Checkpoint, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{tree.text()}".encode()


def _ml_dsa_message(tree: Checkpoint, time: int, name: str) -> bytes:
    subtree = _U64.pack(0) + _U64.pack(tree.size) + tree.root
    return b"".join((_SUBTREE_LABEL, _short(name), _U64.pack(time), _short(tree.origin), subtree))


def _short(text: str) -> bytes:
    data = text.encode()
    if not 0 < len(data) < 256:
        raise ValueError("a name has 1 to 255 bytes")
    return bytes([len(data)]) + data
