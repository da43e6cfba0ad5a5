"""Responsible for GetTlsKey: a fresh P-256 key and a certificate from the application's CA, with evidence if asked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha512
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.devtee.attestation import attestation_blob
from services.devtee.keys import APP_ID_EXTENSION, USAGE_EXTENSION, octet_extension
from services.devtee.machine import VirtualTd

ATTESTATION_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.62397.1.8")

_BACKDATE_SECONDS = 300
# Ten years, as dstack does: what a relying service must not count on.
_VALIDITY_SECONDS = 10 * 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class TlsRequest:
    """What a workload asks for. Times in Unix seconds; None leaves the default."""

    subject: str
    alt_names: tuple[str, ...] = ()
    ra_tls: bool = False
    server_auth: bool = True
    client_auth: bool = False
    not_before: int | None = None
    not_after: int | None = None


@dataclass(frozen=True, slots=True)
class TlsKey:
    """PEM of the private key (PKCS#8) and of the chain: leaf, application CA, KMS root."""

    key: str
    chain: tuple[str, str, str]


def issue_tls_key(td: VirtualTd, request: TlsRequest, now: int) -> TlsKey:
    """Raises `ValueError` for names and times that no certificate can hold."""
    key = ec.generate_private_key(ec.SECP256R1())
    not_before = now - _BACKDATE_SECONDS if request.not_before is None else request.not_before
    not_after = now + _VALIDITY_SECONDS if request.not_after is None else request.not_after
    ca = td.keys.ca
    common_name = [x509.NameAttribute(NameOID.COMMON_NAME, request.subject)] if request.subject else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(common_name))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(not_before))
        .not_valid_after(_moment(not_after))
        .add_extension(_KEY_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
        .add_extension(octet_extension(APP_ID_EXTENSION, td.identity.app_id), critical=False)
        .add_extension(octet_extension(USAGE_EXTENSION, b"app:custom"), critical=False)
    )
    if request.alt_names:
        names = [_alternative_name(name) for name in request.alt_names]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not common_name)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] * request.server_auth
    usages += [ExtendedKeyUsageOID.CLIENT_AUTH] * request.client_auth
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if request.ra_tls:
        blob = attestation_blob(td, ra_tls_report_data(key.public_key()), whole_log=False)
        builder = builder.add_extension(octet_extension(ATTESTATION_EXTENSION, blob), critical=False)
    leaf = builder.sign(ca.key, hashes.SHA256())
    return TlsKey(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        (leaf.public_bytes(serialization.Encoding.PEM).decode(), ca.pem, td.keys.kms_certificate_pem),
    )


def ra_tls_report_data(key: ec.EllipticCurvePublicKey) -> bytes:
    """dstack's binding of a quote to a certificate's key."""
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return sha512(b"ratls-cert:" + spki).digest()


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _moment(unix_seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(unix_seconds, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError("a time that no certificate can hold") from error


_KEY_USAGE = x509.KeyUsage(
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
