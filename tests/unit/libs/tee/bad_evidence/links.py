"""Certificate chains made link by link, each open to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.devtee.gpu import FWID_EXTENSION
from services.devtee.pki import Signer
from tests.unit.libs.tee.bench import NOW

_FWID_HEAD = bytes.fromhex("303d06096086480165030402020430")
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.25.1"), b"\x05\x00")


@dataclass(slots=True)
class Link:
    """One certificate of a chain to be made; the default is a good authority."""

    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    hash: Any = field(default_factory=hashes.SHA384)
    ca: bool | None = True
    path_length: int | None = None
    signs_certificates: bool = True
    critical: bool = True
    # Common names; none for a certificate that names nobody.
    name: str | tuple[str, ...] | None = None
    issuer: str | tuple[str, ...] | None = None
    start: int = NOW - 86400
    end: int = NOW + 86400
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = ()
    signed_by: Any = None
    # How an RSA key above signs this one, where not in the usual way.
    rsa_padding: Any = None


def leaf(fwid: bytes | None = None, **changes: Any) -> Link:
    """A good leaf; with `fwid`, one whose key belongs to this firmware."""
    certified = [] if fwid is None else [(x509.UnrecognizedExtension(FWID_EXTENSION, _FWID_HEAD + fwid), False)]
    extensions = (*changes.pop("extensions", ()), *certified)
    return Link(**{"ca": None, "signs_certificates": False, "extensions": extensions, **changes})


def chain(links: Sequence[Link]) -> tuple[str, bytes]:
    """Make a chain, leaf first; the last link signs itself. Returns its PEM and the root's DER."""
    made = []
    for number, (link, issuer) in enumerate(zip(links, [*links[1:], links[-1]], strict=True)):
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(_given(link.name, f"Attestation Service {number}")))
            .issuer_name(_name(_given(link.issuer, f"Attestation Service {min(number + 1, len(links) - 1)}")))
            .public_key(link.key.public_key())
            .serial_number(1000 + number)
            .not_valid_before(_moment(link.start))
            .not_valid_after(_moment(link.end))
            .add_extension(_usage(link.signs_certificates), critical=link.critical)
        )
        if link.ca is not None:
            constraints = x509.BasicConstraints(ca=link.ca, path_length=link.path_length)
            builder = builder.add_extension(constraints, critical=link.critical)
        for extension, critical in link.extensions:
            builder = builder.add_extension(extension, critical=critical)
        made.append(Signer(link.key, _signed(builder, link, link.signed_by or issuer.key)))
    return "".join(signer.pem for signer in made), made[-1].der


def _signed(builder: x509.CertificateBuilder, link: Link, key: Any) -> x509.Certificate:
    """Sign until the signature's last bit is clear, where each try gives another: it may then be called unused."""
    while True:
        made = builder.sign(key, link.hash, rsa_padding=link.rsa_padding)
        if not made.signature[-1] & 1 or not isinstance(key, ec.EllipticCurvePrivateKey):
            return made


def half_a_byte(der: bytes) -> bytes:
    """State that the last bit of a certificate's signature is unused, which no signature covers."""
    at = len(der) - len(x509.load_der_x509_certificate(der).signature) - 1
    return der[:at] + b"\x01" + der[at + 1 :]


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _given(names: str | tuple[str, ...] | None, usual: str) -> str | tuple[str, ...]:
    return usual if names is None else names


def _name(common_names: str | tuple[str, ...]) -> x509.Name:
    each = (common_names,) if isinstance(common_names, str) else common_names
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in each])


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
