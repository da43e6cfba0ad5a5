"""It is responsible for keys that cross the mesh: sealed to a key that the receiver's evidence binds, never in clear.

HPKE (RFC 9180) in base mode with the hybrid KEM of ML-KEM-768 and X25519, HKDF-SHA256 and AES-256-GCM. TLS around it is
not relied on. The sender's identity is not HPKE's business: both ends have appraised each other on the connection.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from libs.errors import Code, MeshError
from libs.policy.releases import KeyAlgorithm

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_MLKEM_PUBLIC_BYTES = 1184
_PUBLIC_BYTES = _MLKEM_PUBLIC_BYTES + 32


class HpkeKeyMissing(MeshError):
    """The receiver's evidence binds no usable HPKE key."""

    reason = "HPKE_KEY_MISSING"


class SealedKeyRefused(MeshError):
    """What arrived does not open: it was sealed for another receiver, name or epoch."""

    code = Code.PERMISSION_DENIED
    reason = "SEALED_KEY_REFUSED"


class ReceiverKey:
    """The private half, born here and gone with the process."""

    def __init__(self) -> None:
        mlkem_key = mlkem.MLKEM768PrivateKey.generate()
        x25519_key = x25519.X25519PrivateKey.generate()
        self._private = hpke.MLKEM768X25519PrivateKey(mlkem_key, x25519_key)
        self.public: bytes = mlkem_key.public_key().public_bytes_raw() + x25519_key.public_key().public_bytes_raw()
        """ML-KEM-768 encapsulation key (1184 bytes), then X25519 public key (32 bytes); claim `hpke_key` is its hex."""

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Raises `SealedKeyRefused`."""
        try:
            return _SUITE.decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError) as error:
            raise SealedKeyRefused("a sealed key does not open with this service's key") from error


def seal(plaintext: bytes, hpke_key: object, info: bytes) -> bytes:
    """Seal to the claim `hpke_key` of the receiver's evidence. Raises `HpkeKeyMissing`."""
    try:
        raw = bytes.fromhex(hpke_key) if isinstance(hpke_key, str) else b""
        if len(raw) != _PUBLIC_BYTES:
            raise ValueError("not 1216 bytes")
        public = hpke.MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC_BYTES]),
            x25519.X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC_BYTES:]),
        )
    except ValueError as error:
        raise HpkeKeyMissing(f"the evidence binds no usable hpke_key: {error}") from error
    return _SUITE.encrypt(plaintext, public, info)


def release_info(
    name: str, epoch: int, receiver_spiffe_id: str, algorithm: KeyAlgorithm = KeyAlgorithm.AES_256
) -> bytes:
    """What a sealed key is bound to. The receiver builds it from what it asked for; only who asked for the newest
    epoch takes its number from the answer, and so the KMS's word for which is the newest.
    """
    text = name.encode()
    head = struct.pack(">IBH", epoch, algorithm.number, len(text))
    return b"teemesh/release/v2\0" + head + text + receiver_spiffe_id.encode()
