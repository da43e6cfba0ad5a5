"""Responsible for who signed in dstack's form: the secp256k1 key that a recoverable signature over a digest names.

Recovery names some key for nearly every signature and digest, so a recovered key proves nothing until it is compared
with one that is known. Pure Python and not in constant time: nothing that passes through recovery is secret.
"""

from __future__ import annotations

from eth_keys.backends.native.main import NativeECCBackend
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature

from libs.errors import Code, MeshError

SIGNATURE_BYTES = 65
"""`r || s || v`."""

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_RECOVERY_IDS = {0: 0, 1: 1, 27: 0, 28: 1}
"""The parity of the nonce point's y, plain and as Ethereum writes it."""


class SignatureLengthRefused(MeshError):
    """A recoverable signature of another length than 65 bytes."""

    code = Code.PERMISSION_DENIED
    reason = "SIGNATURE_LENGTH_REFUSED"


class RecoveryIdRefused(MeshError):
    """The last byte of a signature is none of 0, 1, 27 and 28."""

    code = Code.PERMISSION_DENIED
    reason = "RECOVERY_ID_REFUSED"


class HighSignatureRefused(MeshError):
    """`s` is above half the order: anybody can turn a signature into this second form of it."""

    code = Code.PERMISSION_DENIED
    reason = "HIGH_SIGNATURE_REFUSED"


class SignerNotRecoverable(MeshError):
    """The numbers in a signature belong to no key."""

    code = Code.PERMISSION_DENIED
    reason = "SIGNER_NOT_RECOVERABLE"


def recover_signer(digest: bytes, signature: bytes) -> bytes:
    """Return the public key under which `signature` signs the 32-byte digest. It MUST be compared with a known one.

    Raises `SignatureLengthRefused`, `RecoveryIdRefused`, `HighSignatureRefused`, `SignerNotRecoverable`.
    """
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureLengthRefused(f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}")
    parity = _RECOVERY_IDS.get(signature[64])
    if parity is None:
        raise RecoveryIdRefused(f"a signature's recovery id is 0, 1, 27 or 28, not {signature[64]}")
    if int.from_bytes(signature[32:64], "big") > _ORDER // 2:
        raise HighSignatureRefused("a signature's s is above half the order: the signer's own has the lower form")
    # The backend is named, so that an installed native library cannot change what runs.
    backend = NativeECCBackend()
    try:
        stated = Signature(signature[:64] + bytes([parity]), backend=backend)
        return stated.recover_public_key_from_msg_hash(digest).to_compressed_bytes()
    except BadSignature as error:
        raise SignerNotRecoverable("a signature's numbers belong to no key") from error
