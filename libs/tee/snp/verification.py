"""Responsible for proving that a genuine AMD chip made a report: step 2 of an appraisal.

What the proved report says is judged in `libs.tee.snp.judgement`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from libs.errors import Code, MeshError
from libs.tee.snp import report as reports
from libs.tee.snp.certificates import Vcek
from libs.tee.snp.chain import VlekNotSupported, verify_chain, verify_revocation
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.snp.report import Product, SigningKey, SnpReport, Tcb


class SigningKeyNotAllowed(MeshError):
    """The report is signed by no key."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_SIGNING_KEY_NOT_ALLOWED"


class ChipMasked(MeshError):
    """The host hides which chip made the report, so nothing ties it to the certificate or to a list of machines."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_CHIP_MASKED"


class SignatureInvalid(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_SIGNATURE_INVALID"


class ProductMismatch(MeshError):
    """The CPU in the report is not of the certificate's product."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_PRODUCT_MISMATCH"


class TcbMismatch(MeshError):
    """The certificate is for other patch levels than the report states."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_TCB_MISMATCH"


class ChipMismatch(MeshError):
    """The certificate is for another chip than the report states."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_CHIP_MISMATCH"


@dataclass(frozen=True, slots=True)
class ReportTcbs:
    """The four patch levels of a report."""

    # What the signing key is derived from. The host may state less than it has.
    reported: Tcb
    # What runs.
    current: Tcb
    # What the firmware can no longer be rolled back behind.
    committed: Tcb
    # What ran when the guest was launched.
    launch: Tcb


@dataclass(frozen=True, slots=True)
class VerifiedSnpReport:
    """What a report proves by its signatures. `judge_tcb` and `judge_guest` say whether that is enough."""

    report: SnpReport
    product: Product
    tcbs: ReportTcbs
    vendor_root_sha256: bytes
    crl_issued_at: int
    # Last unix second in which every certificate and the CRL hold.
    valid_until: int

    @property
    def device_id(self) -> str:
        """SHA-256 of CHIP_ID, lower-case hex."""
        return hashlib.sha256(self.report.chip_id).hexdigest()

    @property
    def cpu_family(self) -> str:
        """The product, and behind it, where the report states them, family and model: `Genoa-19-11`."""
        cpu = self.report.cpu
        return self.product.value if cpu is None else f"{self.product}-{cpu.family:02x}-{cpu.model:02x}"


def verify(data: bytes, endorsement: SnpEndorsement, vendor_roots: Sequence[bytes], now: int) -> VerifiedSnpReport:
    """Prove that genuine hardware under one of `vendor_roots` (DER) made the report, by an endorsement valid `now`.

    Raises `ReportMalformed`, and what `verify_signer`, `verify_chain`, `verify_revocation` and `verify_report` raise.
    """
    report = reports.parse(data)
    verify_signer(report)
    chain = verify_chain(endorsement, vendor_roots, now)
    revocation = verify_revocation(chain, endorsement.crl, now)
    return VerifiedSnpReport(
        report=report,
        product=chain.vcek.product,
        tcbs=verify_report(report, chain.vcek),
        vendor_root_sha256=chain.root_sha256,
        crl_issued_at=revocation.issued_at,
        valid_until=min(chain.valid_until, revocation.valid_until),
    )


def verify_signer(report: SnpReport) -> None:
    """Refuse a report that no VCEK can have signed. Raises `VlekNotSupported`, `SigningKeyNotAllowed`, `ChipMasked`."""
    if report.signing_key is SigningKey.VLEK:
        raise VlekNotSupported("the report is signed by a VLEK, which proves no chip: use a VCEK")
    if report.signing_key is not SigningKey.VCEK:
        raise SigningKeyNotAllowed("the report is not signed by a VCEK")
    if report.chip_key_masked or not any(report.chip_id):
        raise ChipMasked("the host masks the chip's identity or key: turn the mask off")


def verify_report(report: SnpReport, vcek: Vcek) -> ReportTcbs:
    """Prove that the VCEK's chip made the report at the VCEK's patch levels. The VCEK MUST be verified.

    Raises `SignatureInvalid`, `ProductMismatch`, `TcbMismatch`, `ChipMismatch`, `ReportMalformed`.
    """
    try:
        vcek.key.verify(report.signature, report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise SignatureInvalid("the report is not signed by the VCEK") from error
    if report.cpu is not None and report.cpu.product() is not vcek.product:
        raise ProductMismatch(f"the report's CPU is not of the certificate's product, {vcek.product}")
    tcbs = ReportTcbs(
        *(
            Tcb.decode(raw, vcek.product)
            for raw in (report.reported_tcb, report.current_tcb, report.committed_tcb, report.launch_tcb)
        )
    )
    if tcbs.reported != vcek.tcb:
        raise TcbMismatch("the VCEK is for other patch levels: fetch the one for the report's")
    if report.chip_id != vcek.hwid.ljust(len(report.chip_id), b"\0"):
        raise ChipMismatch("the VCEK is for another chip: fetch the one for the report's")
    return tcbs
