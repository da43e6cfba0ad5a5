"""It is responsible for what was allowed when each decision was made, from the log alone, and for deciding it again.

Policies and revocations count in the log's order, each verified as the services did. What the log cannot tell is when
something took effect at the service that decided: its own entries and the KMS's reach the ledger by themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from libs import jcs
from libs.aci.session import verify_session
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.revocation import RevocationSet, SignedRevocation, parse_revocation, verify_revocation
from libs.policy.signatures import verify
from libs.policy.succession import verify_successor, verify_valid_at
from libs.tee import evidence as evidences
from libs.tee.appraisal import SignedBy
from libs.transparency.leaf import Kind
from services.cli.evidence_appraisal import DocumentTerms
from services.cli.log_export import Entry
from services.cli.policy_explanation import Decision, Question, decide

ADMITTED = "ADMITTED"
_GIVEN = frozenset({"admitted", "certified"})
LATER = "by what was logged after it: the log does not tell the time between taking effect and being logged"


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


class EvidenceSwapped(MeshError):
    """The evidence is another than the one that the decision names."""

    code = Code.DATA_LOSS
    reason = "EVIDENCE_SWAPPED"


_WITHHELD: Mapping[Kind, type[MeshError]] = {
    Kind.POLICY: PolicyWithheld,
    Kind.REVOCATION: RevocationWithheld,
    Kind.SESSION: DecisionWithheld,
    Kind.ADMISSION: DecisionWithheld,
}


class Verdict(Enum):
    """How a decision stands once it was made again."""

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


@dataclass(frozen=True, slots=True)
class Authorities:
    """Whom a replay believes from the start."""

    operator_keys: tuple[bytes, ...]
    operator_threshold: int
    """Who may sign the first version in the log."""
    ca_spki: bytes


@dataclass(slots=True)
class Replay:
    """The state that the log describes, up to an entry."""

    authorities: Authorities
    evidence: Mapping[bytes, bytes] = field(default_factory=dict)
    """Documents from elsewhere, by the digest that they are filed under."""
    policies: dict[int, Policy] = field(default_factory=dict)
    revocations: list[tuple[int, SignedRevocation]] = field(default_factory=list)
    """In the log's order, each with its index."""
    sessions: dict[str, bytes] = field(default_factory=dict)

    def run(self, entries: Iterable[Entry]) -> list[Replayed]:
        """Read everything, then decide everything again.

        Raises `PolicyWithheld`, `RevocationWithheld`, `DecisionWithheld` and what policies and revocations are refused
        with.
        """
        decisions: list[Entry] = []
        for entry in entries:
            if entry.kind not in _WITHHELD:
                continue
            if entry.body is None:
                raise _WITHHELD[entry.kind](
                    f"entry {entry.index}, {entry.kind.name.lower()}, is there without its body"
                )
            match entry.kind:
                case Kind.POLICY:
                    self._take_policy(entry.body)
                case Kind.REVOCATION:
                    self._take_revocation(entry.index, entry.body)
                case Kind.SESSION:
                    document = jcs.dumps(dict(entry.body))
                    self.sessions[hashlib.sha256(document).hexdigest()] = document
                case _:
                    decisions.append(entry)
        return [self._decide(entry.index, entry.body or {}) for entry in decisions]

    def _take_policy(self, body: Mapping[str, Any]) -> None:
        signed = jcs.dumps(dict(body))
        if not self.policies:
            policy = verify(signed, self.authorities.operator_keys, self.authorities.operator_threshold)
        else:
            newest = self.policies[max(self.policies)]
            known = self.policies.get(body["policy"]["version"])
            if known is not None and known.document == jcs.dumps(body["policy"]):
                return  # Each instance of the KMS logs what it puts in force.
            policy = verify_successor(newest, signed)
        self.policies[policy.version] = policy

    def _take_revocation(self, index: int, body: Mapping[str, Any]) -> None:
        signed = parse_revocation(jcs.dumps(dict(body)))
        keys = {key for policy in self.policies.values() for key in policy.operator_keys}
        verify_revocation(signed, keys, self._trust_domain)
        self.revocations.append((index, signed))

    @property
    def _trust_domain(self) -> str:
        if not self.policies:
            raise PolicyWithheld("the log has a revocation before any policy: begin at its first entry")
        return self.policies[max(self.policies)].trust_domain

    def _decide(self, index: int, body: Mapping[str, Any]) -> Replayed:
        decision, spiffe_id = str(body.get("decision")), str(body.get("spiffe_id"))
        version = body.get("policy_version")
        recorded = ADMITTED if decision in _GIVEN else str(body.get("reason"))

        def result(verdict: Verdict, repeated: str | None, rule: str | None, note: str) -> Replayed:
            return Replayed(index, decision, spiffe_id, version, recorded, verdict, repeated, rule, note)

        try:
            found = self._evidence(body)
        except MeshError as error:
            return result(Verdict.DIFFERENT, error.reason, None, str(error))
        if found is None:
            return result(Verdict.NOT_REPEATABLE, None, None, _why_not(body))
        if version not in self.policies:
            raise PolicyWithheld(f"entry {index} was decided under version {version}, which is nowhere in the log")
        document, now = found
        before = [
            signed for place, signed in self.revocations if place < index and signed.revocation.time_ms <= now * 1000
        ]
        repeated = self._judge(body, document, now, before)
        if _outcome(repeated) == recorded:
            return result(Verdict.SAME, recorded, _rule(repeated), "")
        # A decision may have been made after a revocation that reached the log after it; never the other way round.
        every = [signed for _, signed in self.revocations]
        if decision not in _GIVEN and _outcome(later := self._judge(body, document, now, every)) == recorded:
            logged_before = {signed.revocation.id for place, signed in self.revocations if place < index}
            is_later = any(signed.revocation.id not in logged_before for signed in later.revocations)
            return result(Verdict.SAME, recorded, _rule(later), LATER if is_later else "")
        return result(Verdict.DIFFERENT, _outcome(repeated), _rule(repeated), str(repeated.refusal or ""))

    def _evidence(self, body: Mapping[str, Any]) -> tuple[bytes, int] | None:
        """Return the evidence of a decision and as of when it was judged, or None when there is none to be had.

        Raises `EvidenceSwapped` and what a session is refused with.
        """
        digest, identifier = body.get("evidence_sha256"), body.get("session_id")
        if not isinstance(digest, str):
            return None
        if isinstance(identifier, str):
            if (sealed := self.sessions.get(identifier)) is None:
                raise DecisionWithheld("the session that it stands on is nowhere in the log")
            session = verify_session(sealed, identifier)
            return _of_digest(session.evidence, digest), session.established_at
        filed = self.evidence.get(bytes.fromhex(digest))
        if filed is None:
            return None
        document = _of_digest(filed, digest)
        return document, evidences.parse(document).challenge.issued_at

    def _judge(
        self, body: Mapping[str, Any], document: bytes, now: int, revocations: Iterable[SignedRevocation]
    ) -> Decision:
        policy, spiffe_id = self.policies[body["policy_version"]], str(body["spiffe_id"])
        refusal: MeshError | None = None
        try:
            verify_valid_at(policy, now)
        except MeshError as error:
            refusal = error
        challenge = SignedBy(self.authorities.ca_spki, policy.evidence_max_age_seconds)
        role = spiffe_id.split("/")[-2] if spiffe_id.count("/") >= 2 else None
        terms = DocumentTerms(now, role, challenge, None)
        return decide(Question(document, policy, refusal, RevocationSet().union(revocations), spiffe_id, terms))


def _of_digest(document: bytes, digest: str) -> bytes:
    if hashlib.sha256(document).hexdigest() != digest:
        raise EvidenceSwapped(f"the evidence is another than {digest}, which the decision names")
    return document


def _outcome(decision: Decision) -> str:
    return ADMITTED if decision.refusal is None else decision.refusal.reason


def _rule(decision: Decision) -> str | None:
    return None if decision.deciding is None else decision.deciding.member


def _why_not(body: Mapping[str, Any]) -> str:
    if "operator_key" in body:
        return "a person's certificate, issued on an operator's signature"
    if "evidence_sha256" not in body:
        return "the log names no evidence of it"
    return f"evidence {body['evidence_sha256']} was not given"
