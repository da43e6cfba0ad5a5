"""Responsible for the two cipher suites (e2ee-v2 §4): ECDH, HKDF-SHA256 and AES-256-GCM, over one field at a time.

A sealed field is the lower-case hex of an ephemeral public key, an AES-GCM nonce (12 bytes), the ciphertext and its tag
(16 bytes). Every field has its own ephemeral key, so no key is ever used twice.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.errors import Code, MeshError

X25519_ALGO = "x25519-aes-256-gcm-hkdf-sha256"
SECP256K1_ALGO = "secp256k1-aes-256-gcm-hkdf-sha256"

_KEY_BYTES = 32
_NONCE_BYTES = 12
_HEX_DIGITS = re.compile(r"[0-9a-fA-F]*")


class E2eeKeyInvalid(MeshError):
    """A public key is not one of the suite's: not hex, of another length, off the curve, or of low order."""

    code = Code.INVALID_ARGUMENT
    reason = "E2EE_KEY_INVALID"


class FieldNotOpened(MeshError):
    """A sealed field is malformed, was changed, or belongs elsewhere. It says no more, so that nobody learns which."""

    code = Code.INVALID_ARGUMENT
    reason = "E2EE_FIELD_NOT_OPENED"

    def __init__(self) -> None:
        super().__init__("a field cannot be decrypted")


class PrivateKey(Protocol):
    """One side's key of one suite."""

    @property
    def public(self) -> bytes:
        """The public key as it stands before a ciphertext."""
        ...

    @property
    def secret(self) -> bytes:
        """The private key itself (32 bytes), for who keeps what it opens. `of` reads it."""
        ...

    def agree(self, public: bytes) -> bytes:
        """Return the shared secret with another key's public half. Raises `ValueError` when that is no key."""
        ...


class X25519Key:
    def __init__(self, private: X25519PrivateKey | None = None) -> None:
        self._private = private or X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def of(cls, secret: bytes) -> X25519Key:
        """Raises `ValueError`."""
        return cls(X25519PrivateKey.from_private_bytes(secret))

    @property
    def secret(self) -> bytes:
        return self._private.private_bytes_raw()

    def agree(self, public: bytes) -> bytes:
        # Refuses the points of low order, whose secret everybody knows (RFC 7748 section 6.1).
        return self._private.exchange(X25519PublicKey.from_public_bytes(public))


class Secp256k1Key:
    def __init__(self, private: ec.EllipticCurvePrivateKey | None = None) -> None:
        self._private = private or ec.generate_private_key(ec.SECP256K1())
        self.public = self._private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    @classmethod
    def of(cls, secret: bytes) -> Secp256k1Key:
        """Raises `ValueError`."""
        return cls(ec.derive_private_key(int.from_bytes(secret), ec.SECP256K1()))

    @property
    def secret(self) -> bytes:
        return self._private.private_numbers().private_value.to_bytes(_KEY_BYTES)

    def agree(self, public: bytes) -> bytes:
        return self._private.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), public))


@dataclass(frozen=True, slots=True)
class Suite:
    """One row of §4."""

    algo: str
    curve: str
    info: bytes
    key: type[X25519Key] | type[Secp256k1Key]
    public_bytes: int
    """How long a public key is."""
    agreement_values: int
    """About how many JSON values are read in the time that a field takes to be opened, or half of one to be sealed."""
    prefix: bytes = b""
    """What a public key begins with; in a header it may be left out."""

    def read_public(self, text: str) -> bytes:
        """Return the public key in hex, `0x` before it or not, as the suite encrypts to it. Raises `E2eeKeyInvalid`."""
        digits = text.removeprefix("0x")
        data = bytes.fromhex(digits) if _is_hex(digits) else b""
        if self.prefix and len(data) == self.public_bytes - len(self.prefix):
            data = self.prefix + data
        if len(data) != self.public_bytes or not data.startswith(self.prefix):
            raise E2eeKeyInvalid("not a public key of this suite")
        try:
            # Whether somebody could be answered under it shows now, before anything is done with what it came with.
            self.key().agree(data)
        except ValueError as error:
            raise E2eeKeyInvalid("not a public key of this suite") from error
        return data

    def seal(self, recipient: bytes, plaintext: bytes, associated: bytes) -> str:
        """Encrypt one field to a key that `read_public` returned."""
        ephemeral, nonce = self.key(), secrets.token_bytes(_NONCE_BYTES)
        cipher = AESGCM(self._derive(ephemeral.agree(recipient)))
        return (ephemeral.public + nonce + cipher.encrypt(nonce, plaintext, associated)).hex()

    def open(self, private: PrivateKey, value: str, associated: bytes) -> bytes:
        """Decrypt one field. Raises `FieldNotOpened`."""
        if not _is_hex(value):
            raise FieldNotOpened
        data = bytes.fromhex(value)
        ephemeral, sealed = data[: self.public_bytes], data[self.public_bytes :]
        try:
            cipher = AESGCM(self._derive(private.agree(ephemeral)))
            return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], associated)
        except (ValueError, InvalidTag) as error:
            raise FieldNotOpened from error

    def looks_sealed(self, value: str) -> bool:
        """Say whether a text is meant as a sealed field: all hex, and as long as a key at least. Prose is not."""
        return len(value) >= 2 * self.public_bytes and _HEX_DIGITS.fullmatch(value) is not None

    def _derive(self, secret: bytes) -> bytes:
        return HKDF(hashes.SHA256(), _KEY_BYTES, salt=None, info=self.info).derive(secret)


SUITES: Mapping[str, Suite] = {
    suite.algo: suite
    for suite in (
        Suite(X25519_ALGO, "x25519", b"aci.e2ee.v2.x25519", X25519Key, public_bytes=32, agreement_values=64),
        Suite(
            SECP256K1_ALGO,
            "secp256k1",
            b"aci.e2ee.v2.secp256k1",
            Secp256k1Key,
            public_bytes=65,
            agreement_values=512,
            prefix=b"\x04",
        ),
    )
}
"""By the name that a keyset's entry has. What is not here is never chosen."""


def _is_hex(text: str) -> bool:
    return len(text) % 2 == 0 and _HEX_DIGITS.fullmatch(text) is not None
