"""Responsible for what an appraisal says of a workload: six tri-state claims with their sources (ACI/1, section 8.3).

A claim that nobody could check is unknown, never asserted by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from libs.tee.nvidia.evidence import GpuVerdict
from libs.tee.verified import Tcb


class Status(StrEnum):
    ASSERTED = "asserted"
    REFUTED = "refuted"
    UNKNOWN = "unknown"


class Source(StrEnum):
    # Read from the verified quote or the vendor's collateral.
    HARDWARE_PROVEN = "hardware_proven"
    # Computed by the verifier from verified evidence and policy.
    VERIFIER_DERIVED = "verifier_derived"


@dataclass(frozen=True, slots=True)
class Claim:
    """Source and reason are there exactly when the status is not unknown."""

    status: Status
    source: Source | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, str]:
        if self.source is None or self.reason is None:
            return {"status": self.status.value}
        return {"status": self.status.value, "source": self.source.value, "reason": self.reason}


UNKNOWN = Claim(Status.UNKNOWN)


@dataclass(frozen=True, slots=True)
class WorkloadClaims:
    tee_attested: Claim
    gpu_attested: Claim
    tcb_up_to_date: Claim
    os_known_good: Claim
    serving_software_known_good: Claim
    model_weights_provenance: Claim

    def to_json(self) -> dict[str, dict[str, str]]:
        return {name: getattr(self, name).to_json() for name in self.__slots__}


def workload_claims(tee_type: str, tcb: Tcb, gpu: GpuVerdict | None, *, has_models: bool) -> WorkloadClaims:
    """State the six claims of ACI/1 for evidence that passed every step."""
    return WorkloadClaims(
        tee_attested=Claim(
            Status.ASSERTED, Source.HARDWARE_PROVEN, f"{tee_type} quote verified to a vendor root of policy"
        ),
        gpu_attested=UNKNOWN if gpu is None else _derived(f"{len(gpu.devices)} GPU answered the same challenge"),
        tcb_up_to_date=Claim(
            Status.ASSERTED if tcb.up_to_date else Status.REFUTED,
            Source.HARDWARE_PROVEN if tcb.vendor_says else Source.VERIFIER_DERIVED,
            f"TCB status {tcb.status}" if tcb.vendor_says else f"{tcb.status}: policy's minimum or more",
        ),
        os_known_good=_derived("the measured operating system is in the policy's allow list"),
        serving_software_known_good=_derived("compose_hash is in the policy's allow list"),
        model_weights_provenance=(
            _derived("the measured code states weights digests that policy lists") if has_models else UNKNOWN
        ),
    )


def _derived(reason: str) -> Claim:
    return Claim(Status.ASSERTED, Source.VERIFIER_DERIVED, reason)
