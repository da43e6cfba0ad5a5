"""Responsible for appraisal: the numbered steps that turn evidence into a verdict.

The first step that fails refuses with its own reason, and what cannot be evaluated is a failure. The function is pure:
the same evidence, rules and time give the same verdict, on a live connection and years later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs.errors import Code, MeshError
from libs.tee import binding
from libs.tee.claims import verify_claims, verify_gpu
from libs.tee.evidence import Evidence
from libs.tee.platform import appraise_platform
from libs.tee.rules import Measurement, RoleRules
from libs.tee.workload import UNKNOWN, Claim, Source, Status, WorkloadClaims


class SpkiMismatch(MeshError):
    """The evidence speaks for another key than the one that must be proved."""

    code = Code.PERMISSION_DENIED
    reason = "SPKI_MISMATCH"


class NonceMismatch(MeshError):
    """The evidence answers another challenge than the verifier's own."""

    code = Code.PERMISSION_DENIED
    reason = "NONCE_MISMATCH"


class ReportDataMismatch(MeshError):
    """The quote does not bind this challenge, key and claims."""

    code = Code.PERMISSION_DENIED
    reason = "REPORT_DATA_MISMATCH"


@dataclass(frozen=True, slots=True)
class OwnNonce:
    """The verifier made the challenge itself; it MUST spend it once and soon, which is not judged here."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class SignedBy:
    """The challenge must be signed by this key and not be older than this."""

    ca_spki_der: bytes
    max_age_seconds: int


@dataclass(frozen=True, slots=True)
class AppraisalContext:
    """What the verifier knows that neither evidence nor policy says."""

    # Unix seconds.
    now: int
    # SubjectPublicKeyInfo, DER, of the key that must be proved; None leaves that to the caller.
    spki: bytes | None
    challenge: OwnNonce | SignedBy
    policy_version: int


@dataclass(frozen=True, slots=True)
class Appraisal:
    """A verdict. It holds until `valid_until` (unix seconds); whoever relies on it adds its own, shorter, bounds."""

    role: str
    measurement: Measurement
    spki_sha256: bytes
    evidence_digest: bytes
    policy_version: int
    appraised_at: int
    valid_until: int
    # Lower-case hex. The seed of an instance id lies on the host's disk: it names an instance, it proves no machine.
    instance_id: str
    app_id: str
    device_id: str
    tcb_status: str
    advisories: tuple[str, ...]
    # Which vendor root vouched: development evidence is told apart by it.
    vendor_root_sha256: bytes
    claims: WorkloadClaims
    # What the measured code says of itself, bound by the quote.
    workload_claims: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "measurement": self.measurement.to_json(),
            "spki_sha256": self.spki_sha256.hex(),
            "evidence_digest": self.evidence_digest.hex(),
            "policy_version": self.policy_version,
            "appraised_at": self.appraised_at,
            "valid_until": self.valid_until,
            "instance_id": self.instance_id,
            "app_id": self.app_id,
            "device_id": self.device_id,
            "tcb_status": self.tcb_status,
            "advisories": list(self.advisories),
            "vendor_root_sha256": self.vendor_root_sha256.hex(),
            "claims": self.claims.to_json(),
            "workload_claims": dict(self.workload_claims),
        }


def appraise(evidence: Evidence, rules: RoleRules, context: AppraisalContext) -> Appraisal:
    """Judge evidence under one role's rules, or raise the reason of the first step that refuses.

    Step 1, size and shape, is what `evidence.parse` and `evidence.assemble` prove: there is no other way to a value.
    """
    # Steps 2 to 9: quote, TCB, TD, binding, event log, compose, measurement, device.
    platform = appraise_platform(
        quote=evidence.quote,
        event_log=evidence.event_log,
        app_compose=evidence.app_compose,
        collateral=evidence.collateral,
        verify_report_data=lambda report_data: _verify_binding(evidence, report_data, context),
        rules=rules,
        now=context.now,
    )
    # Step 10: GPU evidence when the role needs it.
    verify_gpu(evidence, rules)
    # Step 11: claims acceptable to policy.
    has_models = verify_claims(evidence, rules)
    return Appraisal(
        role=rules.role,
        measurement=platform.measurement,
        spki_sha256=hashlib.sha256(evidence.spki).digest(),
        evidence_digest=evidence.digest,
        policy_version=context.policy_version,
        appraised_at=context.now,
        valid_until=platform.valid_until,
        instance_id=platform.identity.instance_id.hex(),
        app_id=platform.identity.app_id.hex(),
        device_id=platform.quote.device_id,
        tcb_status=platform.quote.tcb_status,
        advisories=tuple(sorted(platform.quote.advisories)),
        vendor_root_sha256=platform.quote.vendor_root_sha256,
        claims=workload_claims(platform.quote.tcb_status, has_models),
        workload_claims=evidence.claims,
    )


def workload_claims(tcb_status: str, has_models: bool) -> WorkloadClaims:
    """State the six claims of ACI/1 for evidence that passed every step."""
    up_to_date = tcb_status == "UpToDate"
    return WorkloadClaims(
        tee_attested=Claim(Status.ASSERTED, Source.HARDWARE_PROVEN, "TDX quote verified to a vendor root of policy"),
        # GPU verification is not part of this appraisal, so nothing is said.
        gpu_attested=UNKNOWN,
        tcb_up_to_date=Claim(
            Status.ASSERTED if up_to_date else Status.REFUTED, Source.HARDWARE_PROVEN, f"TCB status {tcb_status}"
        ),
        os_known_good=_derived("os_image_hash and boot registers are in the policy's allow list"),
        serving_software_known_good=_derived("compose_hash is in the policy's allow list"),
        model_weights_provenance=(
            _derived("the measured code states weights digests that policy lists") if has_models else UNKNOWN
        ),
    )


def _derived(reason: str) -> Claim:
    return Claim(Status.ASSERTED, Source.VERIFIER_DERIVED, reason)


def _verify_binding(evidence: Evidence, report_data: bytes, context: AppraisalContext) -> None:
    challenge = evidence.challenge
    match context.challenge:
        case OwnNonce(nonce):
            if challenge.nonce != nonce:
                raise NonceMismatch("the evidence answers another challenge")
        case SignedBy(ca_spki_der, max_age_seconds):
            challenge.verify_signed(ca_spki_der, context.now, max_age_seconds)
    if context.spki is not None and evidence.spki != context.spki:
        raise SpkiMismatch("the evidence speaks for another key")
    if binding.report_data(challenge.nonce, evidence.spki, evidence.claims) != report_data:
        raise ReportDataMismatch("the quote does not bind this challenge, key and claims")
