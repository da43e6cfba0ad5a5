"""It is responsible for named keys: each derived from the root by name, epoch, purpose and algorithm.

Every part is length-prefixed, so no two names can meet in one derivation. Vault keys have monthly epochs, made on first
request; every other name has the epoch 1 until rotation is commanded.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs.errors import Code, MeshError
from libs.policy.releases import KEY_NAME

_VAULT_PREFIX = "ledger-vault/"
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class KeyNameMalformed(MeshError):
    """Not a key name."""

    code = Code.INVALID_ARGUMENT
    reason = "KEY_NAME_MALFORMED"


class KeyEpochUnknown(MeshError):
    """That key has no such epoch."""

    code = Code.NOT_FOUND
    reason = "KEY_EPOCH_UNKNOWN"


class Keyring:
    """All keys of one root."""

    def __init__(self, root: bytes, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._clock = clock

    def resolve(self, name: str, epoch: int) -> int:
        """Return the epoch meant, 0 being the newest. Raises `KeyNameMalformed` or `KeyEpochUnknown`."""
        if not KEY_NAME.fullmatch(name):
            raise KeyNameMalformed("a key name is lower-case segments between slashes, 128 characters at most")
        newest = self._month() if name.startswith(_VAULT_PREFIX) else 1
        if epoch > newest:
            raise KeyEpochUnknown(f"{name} has no epoch {epoch} yet")
        return epoch or newest

    def symmetric(self, name: str, epoch: int) -> bytes:
        """32 bytes for AES-256 or HMAC."""
        return self._derive(name, epoch, "release", "aes-256", 32)

    def signing(self, name: str, epoch: int) -> ec.EllipticCurvePrivateKey:
        """A P-256 key. 48 bytes are reduced, so the bias is below 2^-128 (FIPS 186-5, A.2.1)."""
        wide = int.from_bytes(self._derive(name, epoch, "sign", "p-256", 48), "big")
        return ec.derive_private_key(wide % (_P256_ORDER - 1) + 1, ec.SECP256R1())

    def _derive(self, name: str, epoch: int, purpose: str, algorithm: str, length: int) -> bytes:
        parts = [name.encode(), struct.pack(">I", epoch), purpose.encode(), algorithm.encode()]
        info = b"teemesh/key/v1\0" + b"".join(struct.pack(">H", len(part)) + part for part in parts)
        salt = hashlib.sha256(b"teemesh/kms/root/v1").digest()
        return HKDF(hashes.SHA256(), length, salt=salt, info=info).derive(self._root)

    def _month(self) -> int:
        """Months since January 1970, from 1."""
        now = time.gmtime(self._clock())
        return (now.tm_year - 1970) * 12 + now.tm_mon
