"""Responsible for typed claims (§8.3): what was proven about an upstream, by whom, in the specification's words.

Missing evidence is `unknown`: not a pass, and not a refutation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from libs.aci.encoding import Members
from libs.errors import Code, MeshError

CLAIM_NAMES = (
    "tee_attested",
    "gpu_attested",
    "tcb_up_to_date",
    "os_known_good",
    "serving_software_known_good",
    "model_weights_provenance",
)
_SOURCES = frozenset({"hardware_proven", "verifier_derived", "provider_asserted", "operator_asserted"})


class ClaimMalformed(MeshError):
    """A claim says what §8.3 has no words for."""

    code = Code.INVALID_ARGUMENT
    reason = "CLAIM_MALFORMED"


class ClaimLike(Protocol):
    """What an appraisal says about one claim. `source` and `reason` are None exactly when the status is `unknown`."""

    @property
    def status(self) -> str: ...
    @property
    def source(self) -> str | None: ...
    @property
    def reason(self) -> str | None: ...


class ClaimsLike(Protocol):
    """An appraisal's six claims."""

    @property
    def tee_attested(self) -> ClaimLike: ...
    @property
    def gpu_attested(self) -> ClaimLike: ...
    @property
    def tcb_up_to_date(self) -> ClaimLike: ...
    @property
    def os_known_good(self) -> ClaimLike: ...
    @property
    def serving_software_known_good(self) -> ClaimLike: ...
    @property
    def model_weights_provenance(self) -> ClaimLike: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """One typed claim as read from a session."""

    status: str
    source: str | None = None
    reason: str | None = None


UNKNOWN = Claim("unknown")


@dataclass(frozen=True, slots=True)
class Claims:
    """The six typed claims as read from a session."""

    tee_attested: Claim = UNKNOWN
    gpu_attested: Claim = UNKNOWN
    tcb_up_to_date: Claim = UNKNOWN
    os_known_good: Claim = UNKNOWN
    serving_software_known_good: Claim = UNKNOWN
    model_weights_provenance: Claim = UNKNOWN


def document(claims: ClaimsLike) -> dict[str, dict[str, str]]:
    """Return the claims' objects by name. Raises `ClaimMalformed`."""
    return {name: _claim_document(getattr(claims, name)) for name in CLAIM_NAMES}


def read(members: Members) -> Claims:
    """Read a session's claims; one that is not there is unknown, and entries without a defined name are not judged."""
    return Claims(**{name: _read_claim(members.object(name)) for name in CLAIM_NAMES if members.has(name)})


def _claim_document(claim: ClaimLike) -> dict[str, str]:
    if claim.status not in ("asserted", "refuted", "unknown"):
        raise ClaimMalformed("a claim's status is asserted, refuted or unknown")
    if claim.status == "unknown":
        return {"status": "unknown"}
    if claim.source not in _SOURCES or not claim.reason:
        raise ClaimMalformed("a claim that is asserted or refuted names its source and its reason")
    return {"status": str(claim.status), "source": str(claim.source), "reason": claim.reason}


def _read_claim(members: Members) -> Claim:
    """A status or source that this version does not know makes the claim unknown (Appendix B)."""
    status = members.text("status")
    if status not in ("asserted", "refuted"):
        return UNKNOWN
    source, reason = members.text("source"), members.text("reason")
    return Claim(status, source, reason) if source in _SOURCES else UNKNOWN
