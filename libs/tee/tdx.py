"""Responsible for TDX quotes: their one cut form, their verification, and what the verified report says.

The cryptography and Intel's TCB matching are `dcap_qvl`'s, which judges nothing but revocation here; our own rules
(`judge_tcb`, `judge_td`) decide, so that every refusal has a reason of ours.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dcap_qvl
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee.collateral import Collateral, CollateralMalformed, rfc3339_seconds
from libs.tee.rules import TcbRule

_TDX_TEE_TYPE = 0x81
_HEADER_BYTES = 48
_V4_BODY_BYTES = 584
# Version 5 states the type and size of its body: TD report 1.0, 1.5, 1.5 extended.
_V5_BODY_BYTES = {2: 584, 3: 648, 4: 885}
_QE_REPORT_CERTIFICATION = 6
_PEM_CHAIN_CERTIFICATION = 5
_OUT_OF_DATE = frozenset({"OutOfDate", "OutOfDateConfigurationNeeded"})
_DEBUG_BIT = 1


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


class QuoteNotVerified(MeshError):
    """A signature, certificate or platform state does not hold."""

    code = Code.PERMISSION_DENIED
    reason = "QUOTE_NOT_VERIFIED"


class TcbStatusNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "TCB_STATUS_NOT_ALLOWED"


class TcbTooOld(MeshError):
    """The platform's level is out of date for longer than policy's grace."""

    code = Code.PERMISSION_DENIED
    reason = "TCB_TOO_OLD"


class AdvisoryRefused(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "TCB_ADVISORY_REFUSED"


class TcbEvaluationTooLow(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "TCB_EVALUATION_TOO_LOW"


class CollateralTooOld(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "COLLATERAL_TOO_OLD"


class DebugTd(MeshError):
    """The TD runs with debugging on, so its host can read its memory."""

    code = Code.PERMISSION_DENIED
    reason = "TD_DEBUG"


class SeamSignerNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SEAM_SIGNER_NOT_ALLOWED"


class TdAttributesNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "TD_ATTRIBUTES_NOT_ALLOWED"


class ServiceTdNotAllowed(MeshError):
    """A service TD is bound to this one and could migrate it elsewhere."""

    code = Code.PERMISSION_DENIED
    reason = "SERVICE_TD_NOT_ALLOWED"


@dataclass(frozen=True, slots=True)
class TdReport:
    """The parts of a quote's TD report that this mesh judges."""

    mr_signer_seam: bytes
    td_attributes: bytes
    # Zero, or absent in TD report 1.0.
    mr_service_td: bytes
    mrtd: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes


@dataclass(frozen=True, slots=True)
class TcbLevel:
    """What the vendor says about the level that the platform or its quoting enclave is at."""

    status: str
    # Unix seconds: when the vendor last considered this level good.
    date: int


@dataclass(frozen=True, slots=True)
class VerifiedQuote:
    """What a quote proves by its signatures. `judge_tcb` and `judge_td` say whether that is enough."""

    report: TdReport
    vendor_root_sha256: bytes
    # SHA-256 of the platform's PPID, lower-case hex.
    device_id: str
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
    if not isinstance(report, dcap_qvl.TdReport10):
        raise QuoteMalformed("not a TDX quote")
    return TdReport(
        mr_signer_seam=report.mr_signer_seam,
        td_attributes=report.td_attributes,
        mr_service_td=report.mr_service_td if isinstance(report, dcap_qvl.TdReport15) else bytes(48),
        mrtd=report.mr_td,
        rtmrs=(report.rt_mr0, report.rt_mr1, report.rt_mr2, report.rt_mr3),
        report_data=report.report_data,
    )


def verify(quote: bytes, collateral: Collateral, vendor_roots: Sequence[bytes], now: int) -> VerifiedQuote:
    """Prove that genuine hardware under one of `vendor_roots` (DER) made the cut quote, by collateral valid `now`.

    Judges no TCB status but `Revoked`. Raises `QuoteMalformed`, `CollateralMalformed`,
    `VendorRootNotTrusted`, `CollateralNotCurrent`, `QuoteNotVerified`.
    """
    root = _root_of(collateral, vendor_roots)
    try:
        claims = dcap_qvl.QuoteVerifier(root).verify_with_policy(
            quote,
            dcap_qvl.QuoteCollateralV3.from_json(jcs.dumps(collateral.to_json()).decode()),
            now,
            dcap_qvl.QuotePolicy.claims_only(now),
        )
    except ValueError as error:
        if not collateral.is_current(now):
            raise CollateralNotCurrent("the collateral is not valid now: fetch it again, or check the clock") from error
        raise QuoteNotVerified(" ".join(str(error).split())) from error
    return _verified(read_report(quote), root, jcs.loads_object(claims.to_json().encode()), collateral)


def _root_of(collateral: Collateral, vendor_roots: Sequence[bytes]) -> bytes:
    """Choose the root whose key signed the root CRL; the verifier then proves everything under that one."""
    crl = collateral.root_crl()
    for root in vendor_roots:
        key = x509.load_der_x509_certificate(root).public_key()
        try:
            # A DSA or DH key is none of the vendors'; the type checker wants it said by the call that refuses it.
            signed = crl.is_signature_valid(key)  # type: ignore[arg-type]
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise CollateralMalformed("the collateral's root CRL is signed in an unknown way") from error
        if signed:
            return root
    raise VendorRootNotTrusted("the evidence was not made under a vendor root that policy names")


def _verified(report: TdReport, root: bytes, claims: dict[str, Any], collateral: Collateral) -> VerifiedQuote:
    tcb, platform, enclave = claims["tcb"], claims["platform"], claims["qe"]
    return VerifiedQuote(
        report=report,
        vendor_root_sha256=hashlib.sha256(root).digest(),
        device_id=hashlib.sha256(bytes(platform["pck"]["ppid"])).hexdigest(),
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


def judge_tcb(quote: VerifiedQuote, rule: TcbRule, now: int) -> int:
    """Return until when (unix seconds) the platform's state satisfies the rule, or raise why it does not."""
    if quote.tcb_status not in rule.statuses:
        raise TcbStatusNotAllowed(f"the platform's TCB status is {quote.tcb_status}")
    until = quote.collateral_issued_at + rule.maximum_collateral_age_seconds
    if quote.tcb_status in _OUT_OF_DATE:
        dates = [level.date for level in quote.levels if level.status in _OUT_OF_DATE]
        # The verifier dates the platform by its TDX module where that lags more. Without a date there is no grace.
        end_of_grace = min(dates) + rule.grace_seconds if dates else 0
        if end_of_grace < now:
            raise TcbTooOld(f"the platform's TCB is {quote.tcb_status} for longer than policy's grace: update it")
        until = min(until, end_of_grace)
    if refused := sorted(quote.advisories & rule.refused_advisories):
        raise AdvisoryRefused(f"the platform is subject to {', '.join(refused)}")
    if quote.evaluation_number < rule.minimum_evaluation_number:
        raise TcbEvaluationTooLow(
            f"the collateral has evaluation number {quote.evaluation_number}, policy asks for "
            f"{rule.minimum_evaluation_number}: fetch newer collateral"
        )
    if now - quote.collateral_issued_at > rule.maximum_collateral_age_seconds:
        raise CollateralTooOld("the collateral is older than policy accepts: fetch it again")
    return min(until, quote.valid_until)


def judge_td(report: TdReport, td_attributes: frozenset[str]) -> None:
    """Refuse a TD that its host can look into, move or steer."""
    if report.td_attributes[0] & _DEBUG_BIT:
        raise DebugTd("the TD runs in debug mode")
    if any(report.mr_signer_seam):
        raise SeamSignerNotAllowed("the TDX module is not signed by Intel's own key")
    if report.td_attributes.hex() not in td_attributes:
        raise TdAttributesNotAllowed(f"policy does not list the TD attributes {report.td_attributes.hex()}")
    if any(report.mr_service_td):
        raise ServiceTdNotAllowed("a service TD is bound to the TD")
