"""What a mesh certificate says, and how one is made.

The certificate is an X.509-SVID (SPIFFE X.509-SVID section 2): one URI SAN, a leaf that is no CA, digitalSignature
alone. Beside it stand one DNS SAN, because gRPC and NATS match names on it, and the SHA-256 of the evidence document.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from libs.errors import Code, MeshError

EVIDENCE_OID = x509.ObjectIdentifier("2.25.1477055829")
"""OCTET STRING of the 32-byte SHA-256 of the evidence document. Below 2.25, but no whole UUID: Go, and so nats-server,
refuses certificates that have an arc of more than 31 bits."""

MAX_LIFETIME_SECONDS = 3600
PEOPLE = frozenset({"operator", "auditor"})
"""Roles held by people and tools. They have no evidence: an operator's signature vouches for them."""

_MALFORMED = (
    ValueError,
    # The library's answer to a name that holds a bit string where it expects none.
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for certificates that it cannot read, some of it only when a part is asked for."""

_CLOCK_SKEW_SECONDS = 60
_DER_OCTET_STRING_32 = b"\x04\x20"
_SPIFFE_ID = re.compile(r"spiffe://([a-z0-9][a-z0-9.-]{0,200})/([a-z]{1,20})/([a-z0-9][a-z0-9-]{0,39})")


class CertificateNotAccepted(MeshError):
    """A certificate is not a current one of this mesh's CA, or breaks the rules of an X.509-SVID."""

    code = Code.UNAUTHENTICATED
    reason = "CERTIFICATE_NOT_ACCEPTED"


@dataclass(frozen=True, slots=True)
class MeshCertificate:
    """A parsed certificate. Parsing proves nothing; `verify_issued` does."""

    der: bytes
    trust_domain: str
    role: str
    instance: str
    spki: bytes
    """SubjectPublicKeyInfo, DER."""
    evidence_digest: bytes | None
    """SHA-256 of the evidence document; None for people."""
    not_before: int
    not_after: int

    @property
    def spiffe_id(self) -> str:
        return f"spiffe://{self.trust_domain}/{self.role}/{self.instance}"

    @property
    def server_name(self) -> str:
        return f"{self.role}.{self.trust_domain}"

    @property
    def spki_sha256(self) -> bytes:
        return hashlib.sha256(self.spki).digest()

    @property
    def pem(self) -> bytes:
        return pem_of(self.der)


def parse(der: bytes) -> MeshCertificate:
    """Read a certificate by the rules of the module docstring. Raises `CertificateNotAccepted`."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        spki = spki_of(certificate.public_key())
    except (*_MALFORMED, x509.ExtensionNotFound) as error:
        raise CertificateNotAccepted(f"certificate is malformed: {error}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    dns = names.get_values_for_type(x509.DNSName)
    match = _SPIFFE_ID.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None:
        raise CertificateNotAccepted("certificate must have exactly one SPIFFE ID")
    trust_domain, role, instance = match.groups()
    if dns != [f"{role}.{trust_domain}"]:
        raise CertificateNotAccepted("the DNS name of a certificate must be its role's")
    if constraints.ca or not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise CertificateNotAccepted("certificate must be a leaf that signs no others")
    digest = _evidence_digest(certificate)
    if (digest is None) != (role in PEOPLE):
        raise CertificateNotAccepted("services must name their evidence, people must not")
    return MeshCertificate(
        der=der,
        trust_domain=trust_domain,
        role=role,
        instance=instance,
        spki=spki,
        evidence_digest=digest,
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
    )


def verify_issued(der: bytes, ca_der: bytes, now: float) -> MeshCertificate:
    """Return the certificate if this CA issued it and it is current. Raises `CertificateNotAccepted`."""
    certificate = parse(der)
    try:
        x509.load_der_x509_certificate(der).verify_directly_issued_by(x509.load_der_x509_certificate(ca_der))
    except (*_MALFORMED, InvalidSignature) as error:
        raise CertificateNotAccepted("certificate is not from this mesh's CA") from error
    if not certificate.not_before - _CLOCK_SKEW_SECONDS <= now < certificate.not_after:
        raise CertificateNotAccepted("certificate is outside its validity")
    if certificate.not_after - certificate.not_before > MAX_LIFETIME_SECONDS:
        raise CertificateNotAccepted("certificate lives longer than an hour")
    return certificate


@dataclass(frozen=True, slots=True)
class Subject:
    """For whom a certificate is made."""

    trust_domain: str
    role: str
    instance: str
    evidence_digest: bytes | None

    @property
    def spiffe_id(self) -> str:
        return f"spiffe://{self.trust_domain}/{self.role}/{self.instance}"


def verify_asked_for(certificate: MeshCertificate, subject: Subject, spki: bytes) -> None:
    """Raise `CertificateNotAccepted` unless a certificate that was issued is the one for this subject and key."""
    if certificate.spki != spki:
        raise CertificateNotAccepted("the KMS issued a certificate for another key than was asked for")
    if certificate.spiffe_id != subject.spiffe_id:
        raise CertificateNotAccepted(
            f"the KMS issued a certificate for {certificate.spiffe_id}: asked {subject.spiffe_id}"
        )
    if certificate.evidence_digest != subject.evidence_digest:
        raise CertificateNotAccepted("the KMS issued a certificate over other evidence")


def issue(
    subject: Subject,
    public_key: ec.EllipticCurvePublicKey,
    ca_key: ec.EllipticCurvePrivateKey,
    ca_der: bytes,
    *,
    now: float,
    lifetime_seconds: int = MAX_LIFETIME_SECONDS,
) -> bytes:
    """Make a certificate, DER, that ends so long from now. The caller has decided that the subject is who it says."""
    # A minute back, so that a peer whose clock lags a little does not refuse a fresh certificate.
    start = dt.datetime.fromtimestamp(int(now) - _CLOCK_SKEW_SECONDS, dt.UTC)
    whole = min(lifetime_seconds + _CLOCK_SKEW_SECONDS, MAX_LIFETIME_SECONDS)
    dns_name = f"{subject.role}.{subject.trust_domain}"
    ca = x509.load_der_x509_certificate(ca_der)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns_name)]))
        .issuer_name(ca.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(seconds=whole))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(subject.spiffe_id), x509.DNSName(dns_name)]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_leaf_usage(), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
    )
    if subject.evidence_digest is not None:
        value = _DER_OCTET_STRING_32 + subject.evidence_digest
        builder = builder.add_extension(x509.UnrecognizedExtension(EVIDENCE_OID, value), critical=False)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(Encoding.DER)


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a PKCS#10 request, DER, that proves possession of `key` and asks for nothing else."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def spki_of(public_key: object) -> bytes:
    """SubjectPublicKeyInfo of a P-256 key, DER. Raises `CertificateNotAccepted` for any other key."""
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        raise CertificateNotAccepted("mesh keys are P-256")
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_of_certificate(der: bytes) -> bytes:
    """SubjectPublicKeyInfo of a certificate of which nothing else is believed. Raises `CertificateNotAccepted`."""
    try:
        return spki_of(x509.load_der_x509_certificate(der).public_key())
    except _MALFORMED as error:
        raise CertificateNotAccepted(f"certificate is malformed: {error}") from error


def pem_of(der: bytes) -> bytes:
    """The PEM form of a certificate that was read before."""
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def der_of(pem: bytes) -> bytes:
    """Raises `CertificateNotAccepted`."""
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    except _MALFORMED as error:
        raise CertificateNotAccepted(f"certificate is malformed: {error}") from error


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _leaf_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _evidence_digest(certificate: x509.Certificate) -> bytes | None:
    try:
        extension = certificate.extensions.get_extension_for_oid(EVIDENCE_OID).value
    except x509.ExtensionNotFound:
        return None
    if not isinstance(extension, x509.UnrecognizedExtension):
        raise CertificateNotAccepted("the evidence extension is malformed")
    value = extension.value
    if len(value) != 34 or not value.startswith(_DER_OCTET_STRING_32):
        raise CertificateNotAccepted("the evidence extension is malformed")
    return value[2:]
