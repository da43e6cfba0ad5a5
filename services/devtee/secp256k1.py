"""Responsible for secp256k1 as dstack uses it: recoverable signatures over 32-byte digests, compressed public keys.

Signing is deterministic (RFC 6979) with low S, in pure Python and not in constant time: good enough for keys that are
worthless as security, and for nothing else. The backend is named, so that an installed native library cannot change
what runs.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from eth_keys.backends.native.ecdsa import ecdsa_raw_sign

from libs.tee.secp256k1 import public_key_of


def compressed_public_key(key: bytes) -> bytes:
    """SEC1 compressed, 33 bytes."""
    return public_key_of(key)


def sign_recoverable(key: bytes, digest: bytes) -> bytes:
    """`r || s || v`, 65 bytes, v 0 or 1."""
    parity, r, s = ecdsa_raw_sign(digest, key)
    return r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([parity])


def sign_plain(key: bytes, digest: bytes) -> bytes:
    """`r || s`, 64 bytes."""
    return sign_recoverable(key, digest)[:64]


def is_signed(public_key: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether `r || s` (a recovery byte after it is ignored) signs `digest`. Raises `ValueError` for what is no key."""
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public_key)
    der = utils.encode_dss_signature(
        int.from_bytes(signature[:32], "big"),
        int.from_bytes(signature[32:64], "big"),
    )
    try:
        key.verify(der, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return True
