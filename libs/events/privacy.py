"""Responsible for what a stage says of differential privacy: how much it spent, of what, by whose accounting.

It is the word of the job, whose code added the noise, as everything in a stage is. Numbers are text, as they were
written: canonical JSON here has integers only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from libs.policy.members import Members

_EPSILON = re.compile(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,20})?")
_DELTA = re.compile(r"0(\.[0-9]{1,20})?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")


@dataclass(frozen=True, slots=True)
class Privacy:
    """(epsilon, delta)-differential privacy (Dwork and Roth, 2014, definition 2.4) of all releases until this one."""

    epsilon: str
    """Decimal."""
    delta: str
    """Decimal, below 1."""
    unit: str
    """What neighbours differ in: "worker", or "row"."""
    releases: int
    """Over how many, this stage's being the last, the loss was composed."""
    library: str
    """What computed epsilon."""
    version: str

    def members(self) -> dict[str, Any]:
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "releases": self.releases,
            "library": self.library,
            "version": self.version,
        }

    def __str__(self) -> str:
        return (
            f"epsilon {self.epsilon} at delta {self.delta} for one {self.unit} over {self.releases} releases, "
            f"by {self.library} {self.version}"
        )


def read_privacy(members: Members) -> Privacy:
    """Read the member "privacy" to its end. Raises the reader's refusal."""
    privacy = Privacy(
        epsilon=members.text("epsilon", _EPSILON),
        delta=members.text("delta", _DELTA),
        unit=members.text("unit", _NAME),
        releases=members.integer("releases", 1),
        library=members.text("library", _NAME),
        version=members.text("version", _NAME),
    )
    members.end()
    return privacy
