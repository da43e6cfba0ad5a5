"""Responsible for TDX quotes: their one cut form, their verification, and what the verified report says.

The cryptography and Intel's TCB matching are `dcap_qvl`'s, which judges no more than it must here; our own rules
(`libs.tee.tcb`, `libs.tee.td`) decide, so that every refusal has a reason of ours.
"""

from __future__ import annotations

import hashlib
import json
import struct
from binascii import unhexlify
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dcap_qvl
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from libs.errors import Code, MeshError
from libs.tee.challenge import CLOCK_SKEW_SECONDS
from libs.tee.collateral import Collateral, CollateralMalformed, rfc3339_seconds
from libs.tee.device import Device
from libs.tee.tcb import TcbLevel
from libs.tee.tcb_signer import verify_tcb_signer
from libs.tee.td import DebugTd, ServiceTdNotAllowed, TdAttributesNotAllowed, TdReport

_TDX_TEE_TYPE = 0x81
_HEADER_BYTES = 48
_V4_BODY_BYTES = 584
# Version 5 states the type and size of its body: TD report 1.0 or 1.5.
_V5_BODY_BYTES = {2: 584, 3: 648}
_QE_REPORT_CERTIFICATION = 6
_PEM_CHAIN_CERTIFICATION = 5
_MAX_NAME = 200


class QuoteMalformed(MeshError):
    code = Code.INVALID_ARGUMENT
    reason = "QUOTE_MALFORMED"


class VendorRootNotTrusted(MeshError):
    """The evidence was made under a vendor root that policy does not name."""

    code = Code.PERMISSION_DENIED
    reason = "VENDOR_ROOT_NOT_TRUSTED"


class CollateralNotCurrent(MeshError):
    """The collateral has expired, or was issued later than now: fetch it again, or check the clock."""

    code = Code.PERMISSION_DENIED
    reason = "COLLATERAL_NOT_CURRENT"


class CrlFromFuture(MeshError):
    """A CRL was issued later than now: check the clock, and where the collateral comes from."""

    code = Code.PERMISSION_DENIED
    reason = "CRL_FROM_FUTURE"


class QuoteNotVerified(MeshError):
    """A signature, certificate or platform state does not hold."""

    code = Code.PERMISSION_DENIED
    reason = "QUOTE_NOT_VERIFIED"


class QuoteSignatureInvalid(QuoteNotVerified):
    """What the quoting enclave, the platform or the TD signed was changed since."""

    reason = "QUOTE_SIGNATURE_INVALID"


class CollateralSignatureInvalid(QuoteNotVerified):
    """The collateral was changed since the vendor signed it."""

    reason = "COLLATERAL_SIGNATURE_INVALID"


class CertificateRevoked(QuoteNotVerified):
    """The vendor revoked a certificate of the platform's chain."""

    reason = "CERTIFICATE_REVOKED"


class CertificateNotCurrent(QuoteNotVerified):
    """A certificate of the platform's chain is not valid now."""

    reason = "CERTIFICATE_NOT_CURRENT"


class PlatformMismatch(QuoteNotVerified):
    """The collateral is about another platform family than the quote's."""

    reason = "PLATFORM_MISMATCH"


class TcbLevelUnknown(QuoteNotVerified):
    """The platform's patch level is below every level that the vendor still lists: update it."""

    reason = "TCB_LEVEL_UNKNOWN"


class TcbRevoked(QuoteNotVerified):
    """The vendor revoked the platform's patch level."""

    reason = "TCB_REVOKED"


_NAMED_REFUSALS: tuple[tuple[str, type[MeshError]], ...] = (
    ("report signature is invalid", QuoteSignatureInvalid),
    ("Signature is invalid for qe_report", QuoteSignatureInvalid),
    ("QE report hash mismatch", QuoteSignatureInvalid),
    ("Signature is invalid for", CollateralSignatureInvalid),
    ("CertRevoked", CertificateRevoked),
    ("CertExpired", CertificateNotCurrent),
    ("CertNotValidYet", CertificateNotCurrent),
    ("Fmspc mismatch", PlatformMismatch),
    ("No matching TCB level found", TcbLevelUnknown),
    ("TDX module TCB level check", TcbLevelUnknown),
    ("TCB status is invalid: Revoked", TcbRevoked),
    ("Debug mode is enabled", DebugTd),
    ("service TD", ServiceTdNotAllowed),
    ("TD attributes", TdAttributesNotAllowed),
    ("TD profiling is enabled", TdAttributesNotAllowed),
    ("TD migration is enabled", TdAttributesNotAllowed),
    ("SERVTD_EXT is enabled", TdAttributesNotAllowed),
    ("SEPT_VE_DISABLE is not enabled", TdAttributesNotAllowed),
)
"""Words of the verifier that tell an operator more than that the quote does not verify; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """What a quote proves by its signatures. `TcbRule` and `judge_td` say whether that is enough."""

    report: TdReport
    vendor_root_sha256: bytes
    device: Device
    tcb_status: str
    advisories: frozenset[str]
    levels: tuple[TcbLevel, TcbLevel]
    evaluation_number: int
    collateral_issued_at: int
    # Last unix second in which every certificate, CRL and signed statement holds.
    valid_until: int


def cut(quote: bytes) -> bytes:
    """Return the quote without the zero padding that hardware appends. Raises `QuoteMalformed`.

    Every length inside MUST add up, because the verifier tolerates slack. The result is still no identity of the
    report: a signature has a twin. Only the report's own bytes are.
    """
    try:
        end = _parsed_length(quote)
    except struct.error as error:
        raise QuoteMalformed("the quote ends too early") from error
    if len(quote) < end:
        raise QuoteMalformed("the quote ends too early")
    if quote[end:].strip(b"\0"):
        raise QuoteMalformed("the quote is followed by something other than zero padding")
    return quote[:end]


def _parsed_length(quote: bytes) -> int:
    version, key_type, tee_type = struct.unpack_from("<HHI", quote)
    if tee_type != _TDX_TEE_TYPE or key_type != 2:
        raise QuoteMalformed("not a TDX quote with an ECDSA P-256 key")
    if version == 4:
        auth_start = _HEADER_BYTES + _V4_BODY_BYTES
    elif version == 5:
        body_type, body_bytes = struct.unpack_from("<HI", quote, _HEADER_BYTES)
        if _V5_BODY_BYTES.get(body_type) != body_bytes:
            raise QuoteMalformed("the quote's body is not a TD report")
        auth_start = _HEADER_BYTES + 6 + body_bytes
    else:
        raise QuoteMalformed(f"quotes of version {version} are not read")
    (auth_bytes,) = struct.unpack_from("<I", quote, auth_start)
    end: int = auth_start + 4 + auth_bytes
    # Signature and attestation key, then the nested certification data: QE report, its signature, PEM chain.
    outer_type, outer_bytes = struct.unpack_from("<HI", quote, auth_start + 4 + 128)
    qe_start = auth_start + 4 + 128 + 6
    (qe_auth_bytes,) = struct.unpack_from("<H", quote, qe_start + 448)
    inner_type, inner_bytes = struct.unpack_from("<HI", quote, qe_start + 450 + qe_auth_bytes)
    if (outer_type, inner_type) != (_QE_REPORT_CERTIFICATION, _PEM_CHAIN_CERTIFICATION):
        raise QuoteMalformed("the quote does not carry its certificate chain")
    if qe_start + outer_bytes != end or qe_start + 456 + qe_auth_bytes + inner_bytes != end:
        raise QuoteMalformed("the lengths inside the quote do not add up")
    return end


def read_report(quote: bytes) -> TdReport:
    """Return what a cut quote says, **unverified**. Raises `QuoteMalformed`."""
    try:
        report = dcap_qvl.parse_quote(quote).report
    except ValueError as error:
        raise QuoteMalformed("the quote cannot be read") from error
    if isinstance(report, dcap_qvl.TdReport15):
        mr_service_td = report.mr_service_td
    elif isinstance(report, dcap_qvl.TdReport10):
        mr_service_td = bytes(48)
    else:
        # The extended form of TD report 1.5 has fields that nobody here judges.
        raise QuoteMalformed("not a quote with a TD report 1.0 or 1.5")
    return TdReport(
        mr_signer_seam=report.mr_signer_seam,
        td_attributes=report.td_attributes,
        mr_service_td=mr_service_td,
        mrtd=report.mr_td,
        rtmrs=(report.rt_mr0, report.rt_mr1, report.rt_mr2, report.rt_mr3),
        report_data=report.report_data,
        mr_config_id=report.mr_config_id,
        mr_owner=report.mr_owner,
        mr_owner_config=report.mr_owner_config,
    )


def verify(quote: bytes, collateral: Collateral, vendor_roots: Sequence[bytes], now: int) -> VerifiedQuote:
    """Prove that genuine hardware under one of `vendor_roots` (DER) made the cut quote, by collateral valid `now`.

    Judges no TCB status but `Revoked`. Raises `QuoteMalformed`, `CollateralMalformed`, `VendorRootNotTrusted`,
    `TcbSignerNotAllowed`, `CollateralNotCurrent`, `CrlFromFuture`, `QuoteNotVerified` or, where the
    verifier's own words tell more, one of `_NAMED_REFUSALS`.
    """
    root = _root_named_by(collateral, vendor_roots)
    verify_tcb_signer(collateral, x509.load_der_x509_certificate(root))
    try:
        claims = dcap_qvl.QuoteVerifier(root).verify_with_policy(
            quote, _for_verifier(collateral), now, dcap_qvl.QuotePolicy.claims_only(now)
        )
    except ValueError as error:
        raise _refusal(quote, collateral, root, now) from error
    # The verifier asks this of statements and certificates, and not of CRLs.
    if collateral.newest_crl_time() > now + CLOCK_SKEW_SECONDS:
        raise CrlFromFuture("the collateral holds a CRL from the future: check the clock")
    return _verified(read_report(quote), root, json.loads(claims.to_json()), collateral)


def _root_named_by(collateral: Collateral, vendor_roots: Sequence[bytes]) -> bytes:
    """Choose the root that the root CRL names; the verifier then proves everything under that one."""
    crl = collateral.root_crl()
    try:
        issuer = crl.issuer
    # The library reads a name when it is asked for, and refuses one of its forms with a type error.
    except (ValueError, TypeError) as error:
        raise CollateralMalformed("the collateral's root CRL names no issuer that can be read") from error
    named = [root for root in vendor_roots if x509.load_der_x509_certificate(root).subject == issuer]
    # Two roots of one name, in development only: the one whose key made the CRL.
    for root in named if len(named) > 1 else ():
        if _is_signed_by(crl, root):
            return root
    if not named:
        name = issuer.rfc4514_string()[:_MAX_NAME]
        raise VendorRootNotTrusted(f"the evidence was made under {name!a}, which is no vendor root that policy names")
    return named[0]


def _is_signed_by(crl: x509.CertificateRevocationList, root: bytes) -> bool:
    try:
        # The type checker would have this say which keys can sign; those that cannot have signed nothing.
        return crl.is_signature_valid(x509.load_der_x509_certificate(root).public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _for_verifier(collateral: Collateral) -> dcap_qvl.QuoteCollateralV3:
    """Raises `ValueError` for what is not hex; `bytes.fromhex` would pass over spaces."""
    return dcap_qvl.QuoteCollateralV3(
        pck_crl_issuer_chain=collateral.pck_crl_issuer_chain,
        root_ca_crl=unhexlify(collateral.root_ca_crl),
        pck_crl=unhexlify(collateral.pck_crl),
        tcb_info_issuer_chain=collateral.tcb_info_issuer_chain,
        tcb_info=collateral.tcb_info,
        tcb_info_signature=unhexlify(collateral.tcb_info_signature),
        qe_identity_issuer_chain=collateral.qe_identity_issuer_chain,
        qe_identity=collateral.qe_identity,
        qe_identity_signature=unhexlify(collateral.qe_identity_signature),
    )


def _refusal(quote: bytes, collateral: Collateral, root: bytes, now: int) -> MeshError:
    """Name what the verifier refused. Only the name is chosen here: whatever its words, the quote is refused."""
    if not _is_signed_by(collateral.root_crl(), root):
        return VendorRootNotTrusted("the evidence was made under another vendor root of the same name")
    if not collateral.is_current(now):
        return CollateralNotCurrent("the collateral is not valid now: fetch it again, or check the clock")
    words = _whole_words(quote, collateral, root, now)
    for fragment, refusal in _NAMED_REFUSALS:
        if fragment in words:
            return refusal(words)
    return QuoteNotVerified(words)


def _whole_words(quote: bytes, collateral: Collateral, root: bytes, now: int) -> str:
    """Return why the verifier refuses, down to the cause, which only its plain call tells."""
    try:
        dcap_qvl.verify_with_root_ca(quote, _for_verifier(collateral), root, now)
    except ValueError as error:
        return " ".join(str(error).split())
    return "the quote does not verify"


def _verified(report: TdReport, root: bytes, claims: dict[str, Any], collateral: Collateral) -> VerifiedQuote:
    tcb, platform, enclave = claims["tcb"], claims["platform"], claims["qe"]
    pck = platform["pck"]
    return VerifiedQuote(
        report=report,
        vendor_root_sha256=hashlib.sha256(root).digest(),
        device=Device(id=hashlib.sha256(bytes(pck["ppid"])).hexdigest(), family=bytes(pck["fmspc"]).hex()),
        tcb_status=tcb["status"],
        advisories=frozenset(tcb["advisory_ids"]),
        levels=(_level(platform["tcb_level"]), _level(enclave["tcb_level"])),
        # The two need not agree; the lower one is what policy can rely on.
        evaluation_number=min(tcb["eval_data_number"], enclave["tcb_eval_data_number"]),
        collateral_issued_at=collateral.oldest_issue_time(),
        valid_until=min(claims["earliest_expiration_date"], claims["qe_iden_earliest_expiration_date"]) - 1,
    )


def _level(level: dict[str, Any]) -> TcbLevel:
    return TcbLevel(level["tcbStatus"], rfc3339_seconds(level["tcbDate"]))
