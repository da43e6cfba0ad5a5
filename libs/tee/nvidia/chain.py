"""Responsible for a device's certificate chain: from the key that signs its reports to a device root that policy pins.

NVIDIA's chains have five certificates, all P-384: firmware leaf, boot ROM, provisioner, family, root. They end in the
year 9999, so they say nothing about freshness, and nothing here asks whether one was revoked: the token does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from libs.errors import Code, MeshError

MAX_CHAIN_BYTES = 32 * 1024
MAX_CERTIFICATES = 8
_FWID_EXTENSION = x509.ObjectIdentifier("2.23.133.5.4.1")
# TCG DICE: FWID ::= SEQUENCE { hashAlg OBJECT IDENTIFIER, digest OCTET STRING }, here with SHA-384, ends the extension.
_FWID_HEAD = bytes.fromhex("303d06096086480165030402020430")
_FWID_BYTES = 48
_Extension = TypeVar("_Extension", x509.BasicConstraints, x509.KeyUsage)
_UNDERSTOOD_EXTENSIONS = frozenset({x509.BasicConstraints.oid, x509.KeyUsage.oid})
# What the library raises for a certificate it cannot read. The last is its warning of a form that it will refuse one
# day, where warnings are errors.
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)


class ChainMalformed(MeshError):
    """The text is not a PEM chain of a few certificates."""

    code = Code.INVALID_ARGUMENT
    reason = "GPU_CHAIN_MALFORMED"


class ChainNotTrusted(MeshError):
    """The chain does not end at a device root that policy names."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_CHAIN_NOT_TRUSTED"


class ChainInvalid(MeshError):
    """A link does not hold: a certificate is missing, was not signed by the next, or may not have issued it."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_CHAIN_INVALID"


class ChainNotCurrent(MeshError):
    """A certificate has expired or is not valid yet."""

    code = Code.PERMISSION_DENIED
    reason = "GPU_CHAIN_NOT_CURRENT"


@dataclass(frozen=True, slots=True)
class ReportKey:
    """The key under which a device signs its reports, and what its verified certificate says."""

    key: ec.EllipticCurvePublicKey
    # Decimal serial number of the certificate, as tokens name the device.
    ueid: str
    # SHA-384 of the firmware that holds the key, as the boot ROM certified it; None when it certified none.
    fwid: bytes | None


def verify_chain(pem: str, device_roots: Sequence[bytes], now: int) -> ReportKey:
    """Prove that the first certificate was issued under one of `device_roots` (DER). Raises this module's errors."""
    chain = _load(pem)
    if chain[-1].public_bytes(Encoding.DER) not in device_roots:
        raise ChainNotTrusted("the device's chain does not end at a root that policy names")
    moment = datetime.fromtimestamp(now, UTC)
    if not all(link.not_valid_before_utc <= moment <= link.not_valid_after_utc for link in chain):
        raise ChainNotCurrent("a certificate in the device's chain is not valid now: check the clock")
    try:
        # The root is pinned, but it must be a certificate authority like the others and hold its own signature.
        for below, (subject, issuer) in enumerate(zip(chain, [*chain[1:], chain[-1]], strict=True)):
            _verify_link(subject, issuer, min(below, len(chain) - 2))
        return _report_key(chain[0])
    except (*UNREADABLE, TypeError, InvalidSignature, x509.DuplicateExtension) as error:
        raise ChainInvalid("a link of the device's chain does not hold") from error


def _load(pem: str) -> list[x509.Certificate]:
    if len(pem) > MAX_CHAIN_BYTES or not pem.isascii():
        raise ChainMalformed(f"a device's chain is PEM text of at most {MAX_CHAIN_BYTES} bytes")
    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
        if any(certificate.serial_number <= 0 for certificate in chain):
            # The library only warns of it, and will refuse it one day; RFC 5280 section 4.1.2.2 refuses it now.
            raise ValueError("a serial number is not positive")
    except UNREADABLE as error:
        raise ChainMalformed("the device's chain cannot be read") from error
    if not 2 <= len(chain) <= MAX_CERTIFICATES:
        raise ChainMalformed(f"a device's chain has 2 to {MAX_CERTIFICATES} certificates")
    return chain


def _verify_link(subject: x509.Certificate, issuer: x509.Certificate, authorities_between: int) -> None:
    """Names, signature, and the issuer's right to issue; raises what its caller turns into `ChainInvalid`."""
    constraints = _critical(issuer, x509.BasicConstraints)
    if not constraints.ca or not _critical(issuer, x509.KeyUsage).key_cert_sign:
        raise ValueError("the issuer is no certificate authority")
    if constraints.path_length is not None and constraints.path_length < authorities_between:
        raise ValueError("the issuer may not have so many below it")
    for certificate in (subject, issuer):
        _verify_form(certificate)
    subject.verify_directly_issued_by(issuer)


def _verify_form(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("a key is not on the curve P-384")
    if not isinstance(certificate.signature_hash_algorithm, hashes.SHA384):
        raise ValueError("a certificate is not signed over SHA-384")
    if any(each.critical and each.oid not in _UNDERSTOOD_EXTENSIONS for each in certificate.extensions):
        raise ValueError("a certificate has a critical extension that is not understood")


def _critical(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension:
    for extension in certificate.extensions:
        if isinstance(extension.value, kind) and extension.critical:
            return extension.value
    raise ValueError("a certificate lacks a critical extension")


def _report_key(leaf: x509.Certificate) -> ReportKey:
    if any(isinstance(each.value, x509.BasicConstraints) and each.value.ca for each in leaf.extensions):
        raise ValueError("the first certificate is an authority and signs no reports")
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not _critical(leaf, x509.KeyUsage).digital_signature:
        raise ValueError("the first certificate's key may not sign reports")
    return ReportKey(key, str(leaf.serial_number), _fwid(leaf))


def _fwid(leaf: x509.Certificate) -> bytes | None:
    for extension in leaf.extensions:
        if extension.oid == _FWID_EXTENSION and isinstance(extension.value, x509.UnrecognizedExtension):
            content = extension.value.value
            if content[-_FWID_BYTES - len(_FWID_HEAD) : -_FWID_BYTES] == _FWID_HEAD:
                return content[-_FWID_BYTES:]
    return None
