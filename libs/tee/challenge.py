"""Responsible for challenges: what they say, their nonce, and who signed them.

A signed challenge lets one evidence document convince every relying party: each checks the signature and the age.
An unsigned one counts for its maker alone, who compares the nonce.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import shape

_TAG = b"teemesh/challenge/v1\0"
_MEMBERS = frozenset({"document", "certificate", "signature"})
_DOCUMENT_MEMBERS = frozenset({"issuer", "purpose", "issued_at", "random"})
_MAX_NAME = 256
_MAX_CERTIFICATE = 16 * 1024
_MAX_SIGNATURE = 72
RANDOM_BYTES = 32
# What two honest clocks may differ by. Nobody gains from more.
CLOCK_SKEW_SECONDS = 60


class ChallengeMalformed(MeshError):
    """The challenge is not of the form that this mesh makes."""

    code = Code.INVALID_ARGUMENT
    reason = "CHALLENGE_MALFORMED"


class ChallengeUnsigned(MeshError):
    """The challenge carries no signature, so it counts for its maker alone."""

    code = Code.PERMISSION_DENIED
    reason = "CHALLENGE_UNSIGNED"


class ChallengeIssuerNotTrusted(MeshError):
    """The challenge was signed by another key than the trusted issuer's."""

    code = Code.PERMISSION_DENIED
    reason = "CHALLENGE_ISSUER_NOT_TRUSTED"


class ChallengeSignatureInvalid(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "CHALLENGE_SIGNATURE_INVALID"


class ChallengeTooOld(MeshError):
    """The challenge is older than policy accepts: fresh evidence is needed."""

    code = Code.PERMISSION_DENIED
    reason = "CHALLENGE_TOO_OLD"


class ChallengeFromFuture(MeshError):
    """The challenge was issued later than clock skew explains."""

    code = Code.PERMISSION_DENIED
    reason = "CHALLENGE_FROM_FUTURE"


@dataclass(frozen=True, slots=True)
class Challenge:
    """What evidence answers. Build with `unsigned`, `signed`, `parse` or `decode`, which check every member."""

    issuer: str
    purpose: str
    # Unix seconds by the issuer's clock.
    issued_at: int
    random: bytes
    certificate_der: bytes | None
    signature: bytes | None

    @classmethod
    def unsigned(cls, issuer: str, purpose: str, now: int) -> Challenge:
        """Make a fresh challenge that counts for its maker alone."""
        return cls(issuer, purpose, now, secrets.token_bytes(RANDOM_BYTES), None, None)

    @classmethod
    def signed(
        cls, issuer: str, purpose: str, now: int, private_key: ec.EllipticCurvePrivateKey, certificate_der: bytes
    ) -> Challenge:
        """Make a fresh challenge that everyone who trusts the issuer's key accepts."""
        bare = cls.unsigned(issuer, purpose, now)
        signature = private_key.sign(_TAG + bare._canonical_document(), ec.ECDSA(hashes.SHA256()))
        return cls(issuer, purpose, now, bare.random, certificate_der, signature)

    @classmethod
    def parse(cls, value: Any) -> Challenge:
        """Read the member of an evidence document. Raises `ChallengeMalformed`; verifies no signature."""
        try:
            return cls._read(value)
        except ValueError as error:
            raise ChallengeMalformed(str(error)) from error

    @classmethod
    def decode(cls, data: bytes) -> Challenge:
        """Read the bytes in which a challenge travels by itself. Raises `ChallengeMalformed` or `JsonMalformed`."""
        return cls.parse(jcs.loads_object(data))

    @classmethod
    def _read(cls, value: Any) -> Challenge:
        outer = shape.members(value, _MEMBERS, "challenge")
        document = shape.members(outer["document"], _DOCUMENT_MEMBERS, "challenge document")
        if (outer["certificate"] is None) != (outer["signature"] is None):
            raise ValueError("a challenge has a certificate and a signature, or neither")
        certificate_der = signature = None
        if outer["certificate"] is not None:
            certificate_der = shape.binary(outer["certificate"], "challenge certificate")
            signature = shape.binary(outer["signature"], "challenge signature")
            if len(certificate_der) > _MAX_CERTIFICATE or len(signature) > _MAX_SIGNATURE:
                raise ValueError("the challenge's certificate or signature is too long")
        return cls(
            _name(document["issuer"], "challenge issuer"),
            _name(document["purpose"], "challenge purpose"),
            shape.integer(document["issued_at"], "challenge issued_at"),
            shape.binary(document["random"], "challenge random", RANDOM_BYTES),
            certificate_der,
            signature,
        )

    @property
    def nonce(self) -> bytes:
        return hashlib.sha256(self._canonical_document()).digest()

    def to_json(self) -> dict[str, Any]:
        return {
            "document": self._document(),
            "certificate": None if self.certificate_der is None else self.certificate_der.hex(),
            "signature": None if self.signature is None else self.signature.hex(),
        }

    def encode(self) -> bytes:
        return jcs.dumps(self.to_json())

    def verify_signed(self, ca_spki_der: bytes, now: int, max_age_seconds: int) -> None:
        """Prove that the trusted issuer signed this challenge, not longer ago than `max_age_seconds`.

        Only the certificate's key counts: it MUST be the trusted one, so the certificate's own dates and signature
        prove nothing more and are not judged.
        """
        if self.certificate_der is None or self.signature is None:
            raise ChallengeUnsigned("the challenge is not signed, so it counts for its maker alone")
        key = _certified_key(self.certificate_der)
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if spki != ca_spki_der:
            raise ChallengeIssuerNotTrusted(
                f"the challenge was issued by key {hashlib.sha256(spki).hexdigest()}, which is not the trusted one"
            )
        try:
            key.verify(self.signature, _TAG + self._canonical_document(), ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise ChallengeSignatureInvalid("the challenge's signature does not verify") from error
        if self.issued_at > now + CLOCK_SKEW_SECONDS:
            raise ChallengeFromFuture(f"the challenge was issued {self.issued_at - now} s from now: check both clocks")
        if now - self.issued_at > max_age_seconds:
            raise ChallengeTooOld(
                f"the challenge is {now - self.issued_at} s old, {max_age_seconds} s are accepted: get fresh evidence"
            )

    def _document(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "purpose": self.purpose,
            "issued_at": self.issued_at,
            "random": self.random.hex(),
        }

    def _canonical_document(self) -> bytes:
        # Texts and a safe integer: there is nothing that has no canonical form.
        return jcs.dumps_parsed(self._document())


def _name(value: Any, what: str) -> str:
    name = shape.text(value, what)
    if not 0 < len(name) <= _MAX_NAME:
        raise ValueError(f"{what} has 1 to {_MAX_NAME} characters")
    return name


def _certified_key(certificate_der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = x509.load_der_x509_certificate(certificate_der).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ChallengeMalformed("the challenge's certificate cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ChallengeMalformed("a challenge is signed with a P-256 key")
    return key
