"""It is responsible for what the log says was in force: policies and revocations in its order, each verified as the
services did, and the sessions that decisions stand on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from libs import jcs
from libs.aci.session import verify_session
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.revocation import SignedRevocation, parse_revocation, verify_revocation
from libs.policy.signatures import parse_signed, verify
from libs.policy.succession import verify_successor
from libs.transparency.leaf import Kind
from services.cli.decisions.log_copy import Entry


class PolicyWithheld(MeshError):
    """The log has a policy version that was not given, or one that a decision names is nowhere in it."""

    code = Code.DATA_LOSS
    reason = "POLICY_WITHHELD"


class RevocationWithheld(MeshError):
    """The log has a revocation that was not given."""

    code = Code.DATA_LOSS
    reason = "REVOCATION_WITHHELD"


class DecisionWithheld(MeshError):
    """The log has a decision, or the session that it stands on, that was not given."""

    code = Code.DATA_LOSS
    reason = "DECISION_WITHHELD"


_WITHHELD: Mapping[Kind, type[MeshError]] = {
    Kind.POLICY: PolicyWithheld,
    Kind.REVOCATION: RevocationWithheld,
    Kind.SESSION: DecisionWithheld,
    Kind.ADMISSION: DecisionWithheld,
}


@dataclass(frozen=True, slots=True)
class Authorities:
    """Whom a replay believes from the start."""

    operator_keys: tuple[bytes, ...]
    operator_threshold: int
    """Who may sign the first version in the log."""
    ca_spki: bytes


@dataclass(slots=True)
class InLog:
    """What was read of a log so far."""

    authorities: Authorities
    policies: dict[int, Policy] = field(default_factory=dict)
    revocations: list[tuple[int, SignedRevocation]] = field(default_factory=list)
    """In the log's order, each with its index."""
    sessions: dict[str, bytes] = field(default_factory=dict)
    evidence: dict[bytes, bytes] = field(default_factory=dict)
    """What is in the sessions, by its digest."""
    decisions: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    """In the log's order, each with its index; not read yet."""

    def take(self, entry: Entry) -> None:
        """Read the next entry.

        Raises `PolicyWithheld`, `RevocationWithheld`, `DecisionWithheld` and what policies and revocations are refused
        with.
        """
        if entry.kind not in _WITHHELD:
            return
        if entry.body is None:
            raise _WITHHELD[entry.kind](f"entry {entry.index}, {entry.kind.name.lower()}, is there without its body")
        match entry.kind:
            case Kind.POLICY:
                self._take_policy(entry.body)
            case Kind.REVOCATION:
                self._take_revocation(entry.index, entry.body)
            case Kind.SESSION:
                self._take_session(jcs.dumps(dict(entry.body)))
            case _:
                self.decisions.append((entry.index, entry.body))

    def revoked_before(self, index: int, now: int) -> list[SignedRevocation]:
        """The revocations that were logged before an entry, and were made by then, Unix seconds."""
        return [
            signed for place, signed in self.revocations if place < index and signed.revocation.time_ms <= now * 1000
        ]

    def _take_policy(self, body: Mapping[str, Any]) -> None:
        signed = jcs.dumps(dict(body))
        if not self.policies:
            policy = verify(signed, self.authorities.operator_keys, self.authorities.operator_threshold)
        else:
            newest, again = self.policies[max(self.policies)], parse_signed(signed).policy
            known = self.policies.get(again.version)
            if known is not None and known.document == again.document:
                return  # Each instance of the KMS logs what it puts in force.
            policy = verify_successor(newest, signed)
        self.policies[policy.version] = policy

    def _take_revocation(self, index: int, body: Mapping[str, Any]) -> None:
        signed = parse_revocation(jcs.dumps(dict(body)))
        keys = {key for policy in self.policies.values() for key in policy.operator_keys}
        verify_revocation(signed, keys, self._trust_domain)
        self.revocations.append((index, signed))

    def _take_session(self, document: bytes) -> None:
        identifier = hashlib.sha256(document).hexdigest()
        self.sessions[identifier] = document
        try:
            evidence = verify_session(document, identifier).evidence
        except MeshError:
            return  # What stands on it is told to be different.
        self.evidence[hashlib.sha256(evidence).digest()] = evidence

    @property
    def _trust_domain(self) -> str:
        if not self.policies:
            raise PolicyWithheld("the log has a revocation before any policy: begin at its first entry")
        return self.policies[max(self.policies)].trust_domain
