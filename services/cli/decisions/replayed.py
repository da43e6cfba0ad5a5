"""Responsible for how a decision stands once it was made again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """Whether the same came out."""

    SAME = "SAME"
    DIFFERENT = "DIFFERENT"
    NOT_REPEATABLE = "NOT REPEATABLE"


@dataclass(frozen=True, slots=True)
class Replayed:
    """One decision of the log, and the same one made again."""

    index: int
    decision: str
    spiffe_id: str
    policy_version: int | None
    recorded: str
    """ADMITTED, or the reason on record."""
    verdict: Verdict
    repeated: str | None = None
    """What came out this time; None when it could not be made again."""
    rule: str | None = None
    """The member of the policy, or the revocation, that decides."""
    note: str = ""
