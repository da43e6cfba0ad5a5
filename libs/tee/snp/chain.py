"""Responsible for the proof that AMD vouches for a VCEK: its chain to a pinned root, and that the chain is not revoked.

Names and extensions of a certificate are read only after its signature holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import NameOID

from libs.errors import Code, MeshError
from libs.tee.snp import certificates
from libs.tee.snp.certificates import Certificate, ChainInvalid, Vcek
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.tdx import VendorRootNotTrusted

_VCEK_NAME, _VLEK_NAME = "SEV-VCEK", "SEV-VLEK"
_ExtensionT = TypeVar("_ExtensionT", bound=x509.ExtensionType)


class VlekNotSupported(MeshError):
    """The report is signed by a key that a cloud provider loaded, which proves no chip."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_VLEK_NOT_SUPPORTED"


class CertificateNotCurrent(MeshError):
    """A certificate of the chain has expired or is not valid yet: fetch it again, or check the clock."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_CERTIFICATE_NOT_CURRENT"


class RevocationUnknown(MeshError):
    """The endorsement has no CRL, so nobody can say whether AMD still stands by the chain."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_REVOCATION_UNKNOWN"


class CrlInvalid(MeshError):
    """The CRL is not the root's whole and plain list."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_CRL_INVALID"


class CrlNotCurrent(MeshError):
    """The CRL has expired or is not valid yet: fetch it again, or check the clock."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_CRL_NOT_CURRENT"


class CertificateRevoked(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_CERTIFICATE_REVOKED"


@dataclass(frozen=True, slots=True)
class Chain:
    """A VCEK that a pinned root vouches for. Whether it is revoked is `verify_revocation`'s to say."""

    vcek: Vcek
    ask: Certificate
    ark: Certificate
    # Last unix second in which all three certificates are valid.
    valid_until: int

    @property
    def root_sha256(self) -> bytes:
        return hashlib.sha256(self.ark.der).digest()


@dataclass(frozen=True, slots=True)
class Revocation:
    """When the CRL that does not name the chain was issued, and the last second in which it holds; unix seconds."""

    issued_at: int
    valid_until: int


def verify_chain(endorsement: SnpEndorsement, vendor_roots: Sequence[bytes], now: int) -> Chain:
    """Prove that one of `vendor_roots` (DER) vouches for the VCEK. It alone is not enough: see `verify_revocation`.

    Raises `VendorRootNotTrusted`, `ChainInvalid`, `VlekNotSupported`, `CertificateNotCurrent`.
    """
    ark, ask, vcek = endorsement.ark, endorsement.ask, endorsement.vcek
    if ark.der not in vendor_roots:
        raise VendorRootNotTrusted("the evidence was not made under a vendor root that policy names")
    for what, certificate, issuer in (("ARK", ark, ark), ("ASK", ask, ark), ("VCEK", vcek, ask)):
        _verify_issued(what, certificate, issuer)
    if _common_name(ask).startswith(_VLEK_NAME) or _common_name(vcek) == _VLEK_NAME:
        raise VlekNotSupported("the endorsement is for a VLEK, which proves no chip: use a VCEK")
    stated = certificates.read_vcek(vcek)
    _verify_place(ark, f"ARK-{stated.product}", signs_crls=True)
    _verify_place(ask, f"SEV-{stated.product}", signs_crls=False)
    _verify_leaf(vcek)
    return Chain(stated, ask, ark, min(_valid_until(certificate, now) for certificate in (ark, ask, vcek)))


def verify_revocation(chain: Chain, crl: x509.CertificateRevocationList | None, now: int) -> Revocation:
    """Prove by the root's CRL, valid `now`, that neither the root nor the VCEK's issuer is revoked.

    AMD lists no VCEK: all of them have the serial number 0. A chip is refused by its patch level or by policy.
    Raises `RevocationUnknown`, `CrlInvalid`, `CrlNotCurrent`, `CertificateRevoked`.
    """
    if crl is None:
        raise RevocationUnknown("the endorsement has no CRL: fetch the root's and staple it")
    if not certificates.is_signed_by(crl.tbs_certlist_bytes, crl.signature, chain.ark):
        raise CrlInvalid("the CRL is not signed by the root")
    if crl.issuer != chain.ark.fields.subject:
        raise CrlInvalid("the CRL does not bear the root's name")
    try:
        # A critical extension would narrow what the list speaks about.
        certificates.extensions(crl)
    except ValueError as error:
        raise CrlInvalid("the CRL is not the root's whole and plain list") from error
    issued_at = int(crl.last_update_utc.timestamp())
    if crl.next_update_utc is None or not issued_at <= now < (end := int(crl.next_update_utc.timestamp())):
        raise CrlNotCurrent("the CRL is not valid now: fetch it again, or check the clock")
    for certificate in (chain.ask, chain.ark):
        if crl.get_revoked_certificate_by_serial_number(certificate.serial) is not None:
            raise CertificateRevoked(f"AMD has revoked {_common_name(certificate)}")
    return Revocation(issued_at, end - 1)


def _verify_issued(what: str, certificate: Certificate, issuer: Certificate) -> None:
    if not certificates.is_signed_by(certificate.signed, certificate.fields.signature, issuer):
        raise ChainInvalid(f"the {what} is not signed by the certificate above it")
    if certificate.fields.issuer != issuer.fields.subject:
        raise ChainInvalid(f"the {what} does not name the certificate above it as its issuer")


def _common_name(certificate: Certificate) -> str:
    match certificate.fields.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        case [attribute]:
            return str(attribute.value)
    raise ChainInvalid("a certificate does not have one common name")


def _verify_place(certificate: Certificate, name: str, *, signs_crls: bool) -> None:
    constraints = _extension(certificate, x509.BasicConstraints)
    usage = _extension(certificate, x509.KeyUsage)
    if _common_name(certificate) != name:
        raise ChainInvalid(f"{_common_name(certificate)} stands where {name} belongs")
    if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
        raise ChainInvalid(f"{name} may not sign certificates")
    if signs_crls and not usage.crl_sign:
        raise ChainInvalid(f"{name} may not sign CRLs")


def _verify_leaf(vcek: Certificate) -> None:
    constraints = _extension(vcek, x509.BasicConstraints)
    if _common_name(vcek) != _VCEK_NAME or (constraints is not None and constraints.ca):
        raise ChainInvalid("the VCEK's certificate is not one for a VCEK")


def _extension(certificate: Certificate, kind: type[_ExtensionT]) -> _ExtensionT | None:
    try:
        found = certificates.extensions(certificate.fields)
    except ValueError as error:
        raise ChainInvalid(str(error)) from error
    return next((extension.value for extension in found if isinstance(extension.value, kind)), None)


def _valid_until(certificate: Certificate, now: int) -> int:
    start = int(certificate.fields.not_valid_before_utc.timestamp())
    end = int(certificate.fields.not_valid_after_utc.timestamp())
    if not start <= now <= end:
        raise CertificateNotCurrent(f"{_common_name(certificate)} is not valid now: fetch it again, or check the clock")
    return end
