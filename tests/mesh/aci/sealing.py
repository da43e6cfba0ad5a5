"""The client's side of E2EE v2, made from its specification (e2ee-v2 sections 3 to 6), and nothing of the product."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.mesh.aci import reader

X25519 = "x25519-aes-256-gcm-hkdf-sha256"
SECP256K1 = "secp256k1-aes-256-gcm-hkdf-sha256"
NONCE_BYTES = 12
TAG_BYTES = 16


class Key(Protocol):
    """A private key of one suite."""

    @property
    def public(self) -> bytes:
        """As it stands before a ciphertext."""
        ...

    def shared(self, other: bytes) -> bytes:
        """The secret that HKDF takes."""
        ...


@dataclass(frozen=True, slots=True)
class X25519Key:
    private: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    def shared(self, other: bytes) -> bytes:
        return self.private.exchange(X25519PublicKey.from_public_bytes(other))


@dataclass(frozen=True, slots=True)
class Secp256k1Key:
    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256K1()))

    @property
    def public(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def shared(self, other: bytes) -> bytes:
        return self.private.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), other))


@dataclass(frozen=True, slots=True)
class Suite:
    """One row of section 4."""

    algo: str
    info: bytes
    key_bytes: int

    def new_key(self) -> Key:
        return X25519Key() if self.algo == X25519 else Secp256k1Key()

    def raw(self, public_key: str) -> bytes:
        """A public key as it is encrypted to, of any form in which it may be written."""
        data = bytes.fromhex(public_key.removeprefix("0x"))
        return b"\x04" + data if self.algo == SECP256K1 and len(data) == self.key_bytes - 1 else data


SUITES: Mapping[str, Suite] = {
    X25519: Suite(X25519, b"aci.e2ee.v2.x25519", 32),
    SECP256K1: Suite(SECP256K1, b"aci.e2ee.v2.secp256k1", 65),
}


def seal(
    suite: Suite, recipient: bytes, plaintext: bytes, aad: bytes, *, ephemeral: Key | None = None, nonce: bytes = b""
) -> str:
    """Encrypt one field; keys and nonces are fresh unless a vector says otherwise."""
    key, nonce = ephemeral or suite.new_key(), nonce or secrets.token_bytes(NONCE_BYTES)
    sealed = AESGCM(_derived(suite, key.shared(recipient))).encrypt(nonce, plaintext, aad)
    return (key.public + nonce + sealed).hex()


def unseal(suite: Suite, key: Key, value: str, aad: bytes) -> bytes:
    """Decrypt one field. Raises `InvalidTag`, or `AssertionError` for a value in another form."""
    data = bytes.fromhex(value)
    assert value == data.hex()
    assert len(data) >= suite.key_bytes + NONCE_BYTES + TAG_BYTES
    ephemeral, rest = data[: suite.key_bytes], data[suite.key_bytes :]
    secret = _derived(suite, key.shared(ephemeral))
    return AESGCM(secret).decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], aad)


def request_aad(algo: str, model: str, path: str, nonce: str, timestamp: int) -> bytes:
    return reader.canonical(_context("aci.e2ee.request.v2", algo, model, path, nonce, timestamp))


def response_aad(algo: str, model: str, path: str, nonce: str, timestamp: int, response_id: str) -> bytes:
    context = _context("aci.e2ee.response.v2", algo, model, path, nonce, timestamp)
    return reader.canonical(context | {"id": response_id})


@dataclass(frozen=True, slots=True)
class Envelope:
    """One request's context: its keys, its nonce and its time."""

    suite: Suite
    service_key: str
    """As the keyset has it."""
    model: str
    key: Key
    nonce: str = field(default_factory=lambda: secrets.token_hex(32))
    timestamp: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def to(cls, entry: Mapping[str, Any], model: str) -> Envelope:
        """For the key of a keyset's entry."""
        suite = SUITES[entry["algo"]]
        return cls(suite, entry["public_key"], model, suite.new_key())

    def headers(self, changed: Mapping[str, str | None]) -> Sequence[tuple[str, str]]:
        """The five of section 3.1; each may be given another value, or None to be left out."""
        values: dict[str, str | None] = {
            "version": "2",
            "client": self.key.public.hex(),
            "service": self.service_key,
            "nonce": self.nonce,
            "timestamp": str(self.timestamp),
            **changed,
        }
        return [(NAMES[name], value) for name, value in values.items() if value is not None]

    def seal(self, path: str, plaintext: str) -> str:
        aad = request_aad(self.suite.algo, self.model, path, self.nonce, self.timestamp)
        return seal(self.suite, self.suite.raw(self.service_key), plaintext.encode(), aad)

    def unseal(self, path: str, value: str, response_id: str) -> str:
        aad = response_aad(self.suite.algo, self.model, path, self.nonce, self.timestamp, response_id)
        return unseal(self.suite, self.key, value, aad).decode()


NAMES = {
    "version": "X-E2EE-Version",
    "client": "X-Client-Pub-Key",
    "service": "X-Model-Pub-Key",
    "nonce": "X-E2EE-Nonce",
    "timestamp": "X-E2EE-Timestamp",
}


def _context(purpose: str, algo: str, model: str, path: str, nonce: str, timestamp: int) -> dict[str, Any]:
    return {"purpose": purpose, "algo": algo, "model": model, "field": path, "nonce": nonce, "ts": timestamp}


def _derived(suite: Suite, secret: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=suite.info).derive(secret)
