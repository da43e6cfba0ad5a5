"""Responsible for secp256k1's keys, as dstack's claims and measured configurations name them.

It recovers no signer (`libs.tee.signer_recovery` does): whoever only reads a policy need not load what that takes.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PUBLIC_KEY_BYTES = 33
"""SEC1 compressed."""


def public_key_of(scalar: bytes) -> bytes:
    """Return the compressed public key of a secret. Raises `ValueError` for zero and what reaches the order.

    Not the work of the library that recovers signers: this one takes the same time for every secret.
    """
    key = ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256K1())
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def is_public_key(encoded: bytes) -> bool:
    """Whether this is a point of the curve in compressed form."""
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), encoded)
    except ValueError:
        return False
    return len(encoded) == PUBLIC_KEY_BYTES
