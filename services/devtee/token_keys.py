"""Responsible for the keys of the development token service: an authority that lasts, and signing keys that do not.

Shapes are NVIDIA's: a root that is not published, an issuing authority below it, and P-384 signing keys that are
certified for two days. Every name says "Development".
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from services.devtee.gpu import development_name, key_usage, parse_signer, signer_document
from services.devtee.pki import Signer

SIGNING_KEY_SECONDS = 2 * 86400
_AUTHORITY_SECONDS = 20 * 365 * 86400
# A clock set back a little must not make certificates that are "not yet valid".
_BACKDATE_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs tokens, and its certificates."""

    signer: Signer
    key_id: str
    issuing: x509.Certificate

    @property
    def issued_at(self) -> int:
        """In Unix seconds."""
        return int(self.signer.certificate.not_valid_before_utc.timestamp()) + _BACKDATE_SECONDS

    @property
    def ends_at(self) -> int:
        """In Unix seconds."""
        return int(self.signer.certificate.not_valid_after_utc.timestamp())

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER, leaf first, without the root."""
        return self.signer.der, Signer(self.signer.key, self.issuing).der

    def jwk(self) -> dict[str, Any]:
        """As the service's key set publishes it."""
        numbers = self.signer.key.public_key().public_numbers()
        x, y = (
            base64.urlsafe_b64encode(part.to_bytes(48, "big")).rstrip(b"=").decode() for part in (numbers.x, numbers.y)
        )
        x5c = [base64.b64encode(certificate).decode() for certificate in self.chain]
        return {"kty": "EC", "crv": "P-384", "kid": self.key_id, "x5c": x5c, "x": x, "y": y}


@dataclass(frozen=True, slots=True)
class TokenAuthority:
    """Who certifies signing keys. A policy pins the root."""

    root: Signer
    issuing: Signer

    @classmethod
    def create(cls, now: int) -> TokenAuthority:
        """Make fresh keys and their certificates. `now` is in Unix seconds."""
        root_key, issuing_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
        root_name = development_name("Teemesh Development Attestation Service CA")
        name = development_name("Teemesh Development Attestation Service Intermediate")
        root = Signer(root_key, _certificate(root_name, root_key, root_name, root_key, now, path_length=1))
        return cls(root, Signer(issuing_key, _certificate(name, issuing_key, root_name, root_key, now, path_length=0)))

    def certify(self, now: int, key: ec.EllipticCurvePrivateKey | None = None, key_id: str | None = None) -> SigningKey:
        """Certify a signing key, a fresh one where none is given, for two days from `now`."""
        key = key or ec.generate_private_key(ec.SECP384R1())
        name = development_name("Teemesh Development Attestation Service GPU DEV100")
        certificate = _certificate(name, key, self.issuing.certificate.subject, self.issuing.key, now)
        key_id = key_id or f"nv-eat-kid-dev-{secrets.token_hex(16)}"
        return SigningKey(Signer(key, certificate), key_id, self.issuing.certificate)

    def document(self) -> dict[str, Any]:
        """Both secret keys and their certificates."""
        return {"root": signer_document(self.root), "issuing": signer_document(self.issuing)}

    @classmethod
    def parse(cls, document: Any) -> TokenAuthority:
        return cls(parse_signer(document["root"]), parse_signer(document["issuing"]))


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: int,
    *,
    path_length: int | None = None,
) -> x509.Certificate:
    """An authority, or without `path_length` a signing key; that has no basic constraints, as NVIDIA's."""
    is_authority = path_length is not None
    moment = datetime.fromtimestamp(now, UTC)
    lifetime = _AUTHORITY_SECONDS if is_authority else SIGNING_KEY_SECONDS
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - timedelta(seconds=_BACKDATE_SECONDS))
        .not_valid_after(moment + timedelta(seconds=lifetime))
        .add_extension(key_usage(is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if is_authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    return builder.sign(issuer_key, hashes.SHA384())
