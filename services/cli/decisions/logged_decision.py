"""It is responsible for reading one decision of the log: about whom it was made, under what, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs.aci.encoding import Members
from libs.errors import Code, MeshError

ADMITTED = "ADMITTED"
_GIVEN = frozenset({"admitted", "certified"})
_TAKEN = frozenset({"refused", "withdrawn"})
_OF_NODES = frozenset({"admitted", "withdrawn"})
"""Made by a registry, always about a session."""
_SHA256 = 32


class DecisionMalformed(MeshError):
    """The log has a decision that is not of the form in which services write them."""

    code = Code.DATA_LOSS
    reason = "DECISION_MALFORMED"


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """One decision. What it does not name is None."""

    decision: str
    spiffe_id: str
    recorded: str
    """ADMITTED, or the reason for which it was not."""
    policy_version: int | None
    evidence_sha256: str | None
    session_id: str | None
    of_a_person: bool
    """Made on an operator's signature, not on evidence."""

    @property
    def role(self) -> str | None:
        """None: the name says none."""
        return self.spiffe_id.split("/")[-2] if self.spiffe_id.count("/") >= 2 else None

    @property
    def is_given(self) -> bool:
        """Whether something was let in."""
        return self.decision in _GIVEN


def read_decision(body: Mapping[str, Any]) -> LoggedDecision:
    """Raises `DecisionMalformed`."""
    members = Members(dict(body), "decision", DecisionMalformed)
    decision = members.text("decision")
    if decision not in _GIVEN | _TAKEN:
        raise members.refuse("decision", "is none that services make")
    of_node = decision in _OF_NODES
    return LoggedDecision(
        decision=decision,
        spiffe_id=members.text("spiffe_id"),
        recorded=ADMITTED if decision in _GIVEN else members.text("reason"),
        policy_version=members.integer("policy_version") if of_node or members.has("policy_version") else None,
        evidence_sha256=members.hex("evidence_sha256", _SHA256) if of_node or members.has("evidence_sha256") else None,
        session_id=members.hex("session_id", _SHA256) if of_node or members.has("session_id") else None,
        of_a_person=members.has("operator_key"),
    )
