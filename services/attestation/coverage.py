"""It is responsible for what share of live leases rests on evidence that is accepted and young enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.attestation.nodes import Listed

NOT_APPRAISED = "NOT_APPRAISED_YET"
TOO_OLD = "EVIDENCE_TOO_OLD"
RUN_OUT = "APPRAISAL_RUN_OUT"
OTHER_POLICY = "NOT_APPRAISED_UNDER_CURRENT_POLICY"


@dataclass(frozen=True, slots=True)
class Judged:
    """The last word on a lease's evidence: accepted, or why not."""

    listed: Listed
    # None when accepted.
    reason: str | None
    # Unix seconds; None where nothing could be read, or nothing was accepted.
    issued_at: int | None = None
    valid_until: int | None = None
    policy_version: int | None = None


@dataclass(frozen=True, slots=True)
class Uncovered:
    spiffe_id: str
    reason: str
    evidence_age_seconds: int | None


@dataclass(frozen=True, slots=True)
class Coverage:
    live_leases: int
    policy_version: int
    # In order of the SPIFFE ID.
    uncovered: tuple[Uncovered, ...]

    @property
    def covered(self) -> int:
        return self.live_leases - len(self.uncovered)

    @property
    def share(self) -> float:
        """From 0 to 1; where there is no lease, nothing is covered."""
        return self.covered / self.live_leases if self.live_leases else 0.0


def coverage(judged: Iterable[Judged], *, now: int, max_age_seconds: int, policy_version: int) -> Coverage:
    """Count the live leases, given the last word on each. A pure function."""
    everybody = sorted(judged, key=lambda each: each.listed.spiffe_id)
    uncovered = []
    for each in everybody:
        age = None if each.issued_at is None else max(now - each.issued_at, 0)
        if (reason := _why_not(each, age, now, max_age_seconds, policy_version)) is not None:
            uncovered.append(Uncovered(each.listed.spiffe_id, reason, age))
    return Coverage(len(everybody), policy_version, tuple(uncovered))


def _why_not(each: Judged, age: int | None, now: int, max_age_seconds: int, policy_version: int) -> str | None:
    if each.reason is not None:
        return each.reason
    if age is None or each.valid_until is None:
        return NOT_APPRAISED
    if each.policy_version != policy_version:
        return OTHER_POLICY
    if now > each.valid_until:
        return RUN_OUT
    return TOO_OLD if age > max_age_seconds else None
