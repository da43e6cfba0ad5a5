"""The mock dstack KMS and the keys it gives a TD at boot: responsible for dstack's key derivation, version 0.

The application id goes into every derivation, and the KMS root signs each application's secp256k1 root, so that a
client can check the chain from any key up to a pinned KMS root, as with a real KMS.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from libs.tee.keccak import keccak256
from services.devtee import der, secp256k1
from services.devtee.pki import Signer

APP_ID_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.3")
USAGE_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.4")

_VALIDITY = timedelta(days=10 * 365)
_BACKDATE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class DerivedKey:
    """A 32-byte key, its public half under one algorithm, and who vouches for it."""

    key: bytes
    public_key: bytes
    signature_chain: tuple[bytes, bytes]
    """By the application's root over the public key; by the KMS root over the application's root."""


@dataclass(frozen=True, slots=True)
class AppKeys:
    """What a KMS hands to a TD at boot."""

    app_id: bytes
    root: bytes
    """secp256k1 scalar from which every GetKey answer derives."""
    kms_signature: bytes
    ca: Signer
    kms_certificate_pem: str

    def derive(self, path: str, purpose: str, algorithm: str) -> DerivedKey:
        """Raises `ValueError` for another algorithm than secp256k1 (also "k256" and empty) or ed25519.

        Neither purpose nor algorithm enters the derivation; that is how version 0 is defined.
        """
        key = derive_bytes(self.root, path.encode())
        match algorithm:
            case "secp256k1" | "k256" | "":
                public_key = secp256k1.compressed_public_key(key)
            case "ed25519":
                public_key = Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
            case _:
                raise ValueError("unsupported algorithm")
        claim = f"{purpose}:{public_key.hex()}".encode()
        link = secp256k1.sign_recoverable(self.root, keccak256(claim))
        return DerivedKey(key, public_key, (link, self.kms_signature))


@dataclass(frozen=True, slots=True)
class MockKms:
    """A KMS's two roots: a P-256 CA and a secp256k1 scalar."""

    ca: Signer
    root: bytes

    @classmethod
    def create(cls, now: int) -> MockKms:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Teemesh Development KMS Root CA")
        certificate = _ca_certificate(name, key.public_key(), name, key, now, path_length=1)
        # A uniform 32-byte string is a valid scalar but for a chance of 2^-128.
        return cls(Signer(key, certificate), secrets.token_bytes(32))

    @property
    def provider(self) -> str:
        """The key-provider document that a TD measures: this KMS, by its CA's public key."""
        spki = self.ca.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return f'{{"name":"kms","id":"{spki.hex()}"}}'

    def app_keys(self, app_id: bytes, now: int) -> AppKeys:
        root = derive_bytes(self.root, app_id, b"app-key")
        message = b"dstack-kms-issued:" + app_id + secp256k1.compressed_public_key(root)
        ca_scalar = self.ca.key.private_numbers().private_value.to_bytes(32, "big")
        ca_key = ec.derive_private_key(
            int.from_bytes(derive_bytes(ca_scalar, app_id, b"app-ca"), "big"), ec.SECP256R1()
        )
        certificate = _ca_certificate(
            _name("Teemesh Development App CA"),
            ca_key.public_key(),
            self.ca.certificate.subject,
            self.ca.key,
            now,
            path_length=0,
            extensions={APP_ID_EXTENSION: app_id, USAGE_EXTENSION: b"app:ca"},
        )
        return AppKeys(
            app_id=app_id,
            root=root,
            kms_signature=secp256k1.sign_recoverable(self.root, keccak256(message)),
            ca=Signer(ca_key, certificate),
            kms_certificate_pem=self.ca.pem,
        )


def derive_bytes(secret: bytes, *parts: bytes) -> bytes:
    """dstack's HKDF: the parts are concatenated without lengths."""
    return HKDF(hashes.SHA256(), 32, salt=b"RATLS", info=b"".join(parts)).derive(secret)


def octet_extension(oid: x509.ObjectIdentifier, content: bytes) -> x509.UnrecognizedExtension:
    """A dstack certificate extension: an OCTET STRING inside the one that every extension has."""
    return x509.UnrecognizedExtension(oid, der.octets(content))


def _ca_certificate(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: int,
    *,
    path_length: int,
    extensions: dict[x509.ObjectIdentifier, bytes] | None = None,
) -> x509.Certificate:
    moment = datetime.fromtimestamp(now, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - _BACKDATE)
        .not_valid_after(moment + _VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for oid, content in (extensions or {}).items():
        builder = builder.add_extension(octet_extension(oid, content), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
