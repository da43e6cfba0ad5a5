"""Responsible for certificate chains: link by link, and for a device from its report key to a root that policy pins.

NVIDIA's device chains have five certificates, all P-384: firmware leaf, boot ROM, provisioner, family, root. They end
in the year 9999, so they say nothing about freshness, and nothing here asks whether one was revoked: the token does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from libs.errors import Code, MeshError
from libs.tee.steps import Note, ignore

MAX_CHAIN_BYTES = 32 * 1024
MAX_CERTIFICATES = 8
_REMEMBERED_LINKS = 256
_FWID_EXTENSION = x509.ObjectIdentifier("2.23.133.5.4.1")
# TCG DICE: FWID ::= SEQUENCE { hashAlg OBJECT IDENTIFIER, digest OCTET STRING }, here with SHA-384, ends the extension.
_FWID_HEAD = bytes.fromhex("303d06096086480165030402020430")
_FWID_BYTES = 48
_Extension = TypeVar("_Extension", x509.BasicConstraints, x509.KeyUsage)
_UNDERSTOOD_EXTENSIONS = frozenset({x509.BasicConstraints.oid, x509.KeyUsage.oid})
# Refuses a certificate whose key or signature is of another kind than its use asks for, with `ValueError`.
Form = Callable[[x509.Certificate], None]
# What the library raises for a certificate it cannot read. The last is its warning of a form that it will refuse one
# day, where warnings are errors.
UNREADABLE = (
    ValueError,
    # The library's answer to a name that holds a bit string where it expects none.
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)
# What comes of a certificate that can be read and a link that does not hold.
BROKEN = (*UNREADABLE, InvalidSignature, x509.DuplicateExtension)


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


def verify_chain(pem: str, device_roots: Sequence[bytes], now: int, note: Note = ignore) -> ReportKey:
    """Prove that the first certificate was issued under one of `device_roots` (DER). Raises this module's errors."""
    chain = _load(pem)
    last = chain[-1].public_bytes(Encoding.DER)
    note("root of the chain, SHA-256", lambda: hashlib.sha256(last).digest(), lambda: digests(device_roots))
    note_dates(chain, now, note)
    if last not in device_roots:
        raise ChainNotTrusted("the device's chain does not end at a root that policy names")
    if not are_current(chain, now):
        raise ChainNotCurrent("a certificate in the device's chain is not valid now: check the clock")
    try:
        # The root is pinned to the byte, so its own signature would say nothing more.
        verify_links(chain, _verify_form)
        return _report_key(chain[0])
    except BROKEN as error:
        raise ChainInvalid("a link of the device's chain does not hold") from error


def read_certificate(der: bytes) -> x509.Certificate:
    """Read one certificate, or raise one of `UNREADABLE`."""
    certificate = x509.load_der_x509_certificate(der)
    _require_profile(certificate)
    return certificate


def are_current(certificates: Sequence[x509.Certificate], now: int) -> bool:
    moment = datetime.fromtimestamp(now, UTC)
    return all(each.not_valid_before_utc <= moment <= each.not_valid_after_utc for each in certificates)


def note_dates(certificates: Sequence[x509.Certificate], now: int, note: Note) -> None:
    note("certificates hold, unix s", lambda: tuple(map(_dates, certificates)), lambda: f"all at {now}")


def _dates(each: x509.Certificate) -> str:
    return f"{int(each.not_valid_before_utc.timestamp())} to {int(each.not_valid_after_utc.timestamp())}"


def digests(certificates: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return SHA-256 of each."""
    return tuple(hashlib.sha256(der).digest() for der in certificates)


def verify_links(path: Sequence[x509.Certificate], verify_form: Form) -> None:
    """Prove that each certificate issued the one before it, or raise one of `BROKEN`.

    Whether the last is trusted, and whether any is valid now, is the caller's to ask.
    """
    for certificate in path:
        verify_form(certificate)
        if any(each.critical and each.oid not in _UNDERSTOOD_EXTENSIONS for each in certificate.extensions):
            raise ValueError("a certificate has a critical extension that is not understood")
    for below, (subject, issuer) in enumerate(pairwise(path)):
        _verify_link(subject, issuer, below)


def require_signing_leaf(leaf: x509.Certificate, *, usage_stated: bool) -> None:
    """Refuse with `ValueError` a certificate that may issue others, or whose key may not sign.

    With `usage_stated` it must say that the key may sign; else it may be silent.
    """
    if any(isinstance(each.value, x509.BasicConstraints) and each.value.ca for each in leaf.extensions):
        raise ValueError("the first certificate is an authority and signs nothing else")
    if usage_stated:
        _critical(leaf, x509.KeyUsage)
    for extension in leaf.extensions:
        if isinstance(extension.value, x509.KeyUsage) and not extension.value.digital_signature:
            raise ValueError("the first certificate's key may not sign")


def _load(pem: str) -> list[x509.Certificate]:
    if len(pem) > MAX_CHAIN_BYTES or not pem.isascii():
        raise ChainMalformed(f"a device's chain is PEM text of at most {MAX_CHAIN_BYTES} bytes")
    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
        for certificate in chain:
            _require_profile(certificate)
    except UNREADABLE as error:
        raise ChainMalformed("the device's chain cannot be read") from error
    if not 2 <= len(chain) <= MAX_CERTIFICATES:
        raise ChainMalformed(f"a device's chain has 2 to {MAX_CERTIFICATES} certificates")
    return chain


def _require_profile(certificate: x509.Certificate) -> None:
    """Refuse with one of `UNREADABLE` what RFC 5280 forbids and the library lets pass, or reads only when asked."""
    if not (certificate.subject.rdns and certificate.issuer.rdns):
        raise ValueError("a certificate names nobody")
    # The library only warns of it, and will refuse it one day; section 4.1.2.2 refuses it now.
    if certificate.serial_number <= 0:
        raise ValueError("a serial number is not positive")
    # A signature is whole bytes: the count of unused bits before it is covered by nothing.
    if certificate.public_bytes(Encoding.DER)[-len(certificate.signature) - 1] != 0:
        raise ValueError("a signature is not whole bytes")


def _verify_link(subject: x509.Certificate, issuer: x509.Certificate, authorities_between: int) -> None:
    """Names, signature, and the issuer's right to issue."""
    constraints = _critical(issuer, x509.BasicConstraints)
    if not constraints.ca or not _critical(issuer, x509.KeyUsage).key_cert_sign:
        raise ValueError("the issuer is no certificate authority")
    if constraints.path_length is not None and constraints.path_length < authorities_between:
        raise ValueError("the issuer may not have so many below it")
    verify_issued(subject, issuer)


@lru_cache(maxsize=_REMEMBERED_LINKS)
def verify_issued(subject: x509.Certificate, issuer: x509.Certificate) -> None:
    """Prove that the issuer's key signed the subject, or raise one of `BROKEN`.

    A signature that held once holds for ever, so it is remembered, and a failure is not: the devices of a node share
    the upper links of their chains, and each renewal shows most of them again.
    """
    subject.verify_directly_issued_by(issuer)


def _verify_form(certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("a key is not on the curve P-384")
    if not isinstance(certificate.signature_hash_algorithm, hashes.SHA384):
        raise ValueError("a certificate is not signed over SHA-384")


def _critical(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension:
    for extension in certificate.extensions:
        if isinstance(extension.value, kind) and extension.critical:
            return extension.value
    raise ValueError("a certificate lacks a critical extension")


def _report_key(leaf: x509.Certificate) -> ReportKey:
    require_signing_leaf(leaf, usage_stated=True)
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("the first certificate's key may not sign reports")
    return ReportKey(key, str(leaf.serial_number), _fwid(leaf))


def _fwid(leaf: x509.Certificate) -> bytes | None:
    for extension in leaf.extensions:
        if extension.oid == _FWID_EXTENSION and isinstance(extension.value, x509.UnrecognizedExtension):
            content = extension.value.value
            if content[-_FWID_BYTES - len(_FWID_HEAD) : -_FWID_BYTES] == _FWID_HEAD:
                return content[-_FWID_BYTES:]
    return None
