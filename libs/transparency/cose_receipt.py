"""COSE receipts (RFC 9942): that a leaf is in the log, for readers who speak COSE and not C2SP.

A COSE_Sign1 by the checkpoint key over the root, which is detached: whoever verifies must compute it from the leaf. The
protected header names algorithm, tree (395: RFC9162_SHA256) and, as CWT issuer, the origin; the proof is under 396.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.errors import Code, MeshError
from libs.transparency import cbor, merkle
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.note import VerifierKey

_SIGN1 = 18
_ALGORITHM, _CWT_CLAIMS, _VDS, _VDP = 1, 15, 395, 396
_ED25519 = -19
"""RFC 9864: the fully specified name of what -8 (EdDSA) left open."""
_RFC9162_SHA256 = 1
_INCLUSION = -1
_ISSUER = 1
_MAX_PATH = 64


class CoseReceiptInvalid(MeshError):
    """The bytes are no receipt by this log's key for this leaf."""

    code = Code.PERMISSION_DENIED
    reason = "COSE_RECEIPT_INVALID"


@dataclass(frozen=True, slots=True)
class CoseReceipt:
    """What a receipt says. Nothing in it is proven."""

    origin: str
    size: int
    index: int
    path: tuple[bytes, ...]
    signature: bytes

    def encode(self) -> bytes:
        proof = cbor.encode((self.size, self.index, self.path))
        unprotected: Mapping[int, cbor.Item] = {_VDP: {_INCLUSION: (proof,)}}
        return cbor.encode(cbor.Tagged(_SIGN1, (_protected(self.origin), unprotected, None, self.signature)))

    @classmethod
    def parse(cls, data: bytes) -> CoseReceipt:
        """Read a receipt of the one form that this log writes. Raises `CoseReceiptInvalid`."""
        try:
            match cbor.decode(data):
                case cbor.Tagged(tag=18, item=(bytes(protected), {396: {-1: (bytes(proof),)}}, None, bytes(signature))):
                    receipt = cls(_origin(protected), *_proof(proof), signature)
                case _:
                    raise CoseReceiptInvalid("no COSE_Sign1 with one inclusion proof and a detached payload")
        except cbor.CborMalformed as error:
            raise CoseReceiptInvalid(f"no receipt: {error}") from error
        if receipt.encode() != data:
            raise CoseReceiptInvalid("the receipt has headers that are not known here")
        return receipt


def sign(tree: Checkpoint, key: Ed25519PrivateKey) -> bytes:
    """Return the signature of all receipts in a tree. The caller MUST have signed the tree's checkpoint."""
    return key.sign(_to_be_signed(tree.origin, tree.root))


def verify(data: bytes, leaf_data: bytes, key: VerifierKey) -> bytes:
    """Return the root, signed by the log whose key this is, of a tree that has the leaf. Raises `CoseReceiptInvalid`.

    That is all that a receipt proves: size and index are not signed, and another pair may lead to the same root.
    """
    receipt = CoseReceipt.parse(data)
    if receipt.origin != key.name:
        raise CoseReceiptInvalid(f"the receipt is of {receipt.origin}, not of {key.name}")
    try:
        root = merkle.root_from_path(merkle.leaf_hash(leaf_data), receipt.index, receipt.size, receipt.path)
        signed = _to_be_signed(receipt.origin, root)
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(receipt.signature, signed)
    except (merkle.ProofInvalid, InvalidSignature, ValueError) as error:
        raise CoseReceiptInvalid("the leaf does not lead to a root that the log signed") from error
    return root


def _protected(origin: str) -> bytes:
    return cbor.encode({_ALGORITHM: _ED25519, _CWT_CLAIMS: {_ISSUER: origin}, _VDS: _RFC9162_SHA256})


def _to_be_signed(origin: str, root: bytes) -> bytes:
    """The Sig_structure of RFC 9052 section 4.4."""
    return cbor.encode(("Signature1", _protected(origin), b"", root))


def _origin(protected: bytes) -> str:
    match cbor.decode(protected):
        case {1: -19, 15: {1: str(origin)}, 395: 1}:
            return origin
    raise CoseReceiptInvalid("the protected header is another than this log's")


def _proof(proof: bytes) -> tuple[int, int, tuple[bytes, ...]]:
    match cbor.decode(proof):
        case (int(size), int(index), tuple(path)) if len(path) <= _MAX_PATH:
            steps = tuple(step for step in path if isinstance(step, bytes))
            if len(steps) == len(path):
                return size, index, steps
    raise CoseReceiptInvalid("an inclusion proof is a size, an index and hashes")
