"""Responsible for Intel's word on a platform's patch level: what it says, and which of it policy accepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from libs.errors import Code, MeshError
from libs.tee.steps import Note

_OUT_OF_DATE = frozenset({"OutOfDate", "OutOfDateConfigurationNeeded"})


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


@dataclass(frozen=True, slots=True)
class TcbLevel:
    """What the vendor says about the level that the platform or its quoting enclave is at."""

    status: str
    # Unix seconds: when the vendor last considered this level good.
    date: int


class TcbStatement(Protocol):
    """The verified statements of the vendor about one platform."""

    @property
    def tcb_status(self) -> str: ...
    @property
    def advisories(self) -> frozenset[str]: ...
    @property
    def levels(self) -> tuple[TcbLevel, ...]: ...
    @property
    def evaluation_number(self) -> int: ...
    @property
    def collateral_issued_at(self) -> int: ...
    @property
    def valid_until(self) -> int: ...


@dataclass(frozen=True, slots=True)
class TcbRule:
    """A rule: which platform states are accepted, and how old the vendor's word about them may be."""

    # In Intel's words, for example "UpToDate". A status not listed is refused.
    statuses: frozenset[str]
    refused_advisories: frozenset[str]
    # For how long after its TCB date a level that is listed but out of date is still accepted; 0 accepts none.
    grace_seconds: int
    minimum_evaluation_number: int
    maximum_collateral_age_seconds: int

    def holds_until(self, facts: TcbStatement, now: int, note: Note) -> int:
        note("TCB status", facts.tcb_status, self.statuses)
        if facts.tcb_status not in self.statuses:
            raise TcbStatusNotAllowed(f"the platform's TCB status is {facts.tcb_status}")
        end_of_grace = self._end_of_grace(facts, now, note)
        note("advisories", facts.advisories, "none that policy refuses")
        if refused := sorted(facts.advisories & self.refused_advisories):
            raise AdvisoryRefused(f"the platform is subject to {', '.join(refused)}")
        note("TCB evaluation number", facts.evaluation_number, f"{self.minimum_evaluation_number} or more")
        if facts.evaluation_number < self.minimum_evaluation_number:
            raise TcbEvaluationTooLow(
                f"the collateral has evaluation number {facts.evaluation_number}, policy asks for "
                f"{self.minimum_evaluation_number}: fetch newer collateral"
            )
        end_of_age = facts.collateral_issued_at + self.maximum_collateral_age_seconds
        note("collateral age, s", now - facts.collateral_issued_at, f"{self.maximum_collateral_age_seconds} or less")
        if now > end_of_age:
            raise CollateralTooOld("the collateral is older than policy accepts: fetch it again")
        return min(end_of_age, end_of_grace, facts.valid_until)

    def _end_of_grace(self, facts: TcbStatement, now: int, note: Note) -> int:
        if facts.tcb_status not in _OUT_OF_DATE:
            return facts.valid_until
        dates = [level.date for level in facts.levels if level.status in _OUT_OF_DATE]
        # The verifier dates the platform by its TDX module where that lags more. Without a date there is no grace.
        end = min(dates) + self.grace_seconds if dates else 0
        note("end of grace, unix s", end, f"{now} or later")
        if end < now:
            raise TcbTooOld(f"the platform's TCB is {facts.tcb_status} for longer than policy's grace: update it")
        return end
