"""The mock vendor: responsible for the keys and certificates under which this machine's quotes verify.

Four P-256 keys as Intel has them: a root, a PCK platform CA, the machine's PCK leaf, and a TCB signer. They are fresh
random values for each machine, so nothing made with them verifies under another machine's root or under the vendor's
real one. Every name says "Development".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from services.devtee.platform import SGX_EXTENSION, Platform

_VALIDITY = timedelta(days=20 * 365)
# A clock set back a little must not make certificates that are "not yet valid".
_BACKDATE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Signer:
    """A key and the certificate that speaks for it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def sign_raw(self, data: bytes) -> bytes:
        return sign_raw(self.key, data)


@dataclass(frozen=True, slots=True)
class VendorPki:
    """All that the vendor's factory and its certification service hold for one machine."""

    platform: Platform
    root: Signer
    platform_ca: Signer
    pck: Signer
    tcb_signing: Signer

    @classmethod
    def create(cls, platform: Platform, now: int) -> VendorPki:
        """Make fresh keys and their certificates. `now` is in Unix seconds."""
        moment = datetime.fromtimestamp(now, UTC)
        root_key = ec.generate_private_key(ec.SECP256R1())
        root_name = _name("Teemesh Development SGX Root CA")
        root_certificate = _certificate(root_name, root_key, root_name, root_key, moment, path_length=1)
        root = Signer(root_key, root_certificate)
        platform_ca = _issue(root, "Teemesh Development SGX PCK Platform CA", moment, path_length=0)
        pck = _issue(platform_ca, "Teemesh Development SGX PCK Certificate", moment, sgx=platform.sgx_extension())
        tcb_signing = _issue(root, "Teemesh Development SGX TCB Signing", moment)
        return cls(platform, root, platform_ca, pck, tcb_signing)

    @property
    def pck_chain(self) -> str:
        """PEM, leaf first, as a quote carries it."""
        return self.pck.pem + self.platform_ca.pem + self.root.pem

    @property
    def tcb_chain(self) -> str:
        return self.tcb_signing.pem + self.root.pem

    @property
    def pck_crl_chain(self) -> str:
        return self.platform_ca.pem + self.root.pem


def sign_raw(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """ECDSA over SHA-256 as `r || s`, 32 bytes each, the form that quotes and collateral use."""
    r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public_key(key: ec.EllipticCurvePublicKey) -> bytes:
    """`x || y`, 32 bytes each, without the SEC1 prefix byte."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)[1:]


def _issue(
    issuer: Signer, common_name: str, now: datetime, *, path_length: int | None = None, sgx: bytes | None = None
) -> Signer:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(
        _name(common_name), key, issuer.certificate.subject, issuer.key, now, path_length=path_length, sgx=sgx
    )
    return Signer(key, certificate)


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    path_length: int | None = None,
    sgx: bytes | None = None,
) -> x509.Certificate:
    is_ca = path_length is not None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=path_length), critical=True)
        .add_extension(_key_usage(is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if sgx is not None:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION), sgx), critical=False
        )
    return builder.sign(issuer_key, hashes.SHA256())


def _key_usage(is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Teemesh Development"),
        ]
    )
