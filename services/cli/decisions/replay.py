"""It is responsible for deciding again what the log holds, as of when it was decided.

What the log cannot tell is when something took effect at the service that decided: its own entries and the KMS's reach
the ledger by themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.aci.session import verify_session
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.policy.revocation import RevocationSet, SignedRevocation
from libs.policy.succession import verify_valid_at
from libs.tee import evidence as evidences
from libs.tee.appraisal import SignedBy
from services.cli.decisions.explanation import Decision, Question, decide
from services.cli.decisions.log_state import DecisionWithheld, InLog, PolicyWithheld
from services.cli.decisions.logged_decision import ADMITTED, DecisionMalformed, LoggedDecision, read_decision
from services.cli.decisions.replayed import Replayed, Verdict
from services.cli.evidence.appraisal import DocumentTerms

LATER = "by what was logged after it: the log does not tell the time between taking effect and being logged"
AGED = "as of when its session ends: the log does not tell when it was withdrawn"


class EvidenceSwapped(MeshError):
    """The evidence is another than the one that the decision names."""

    code = Code.DATA_LOSS
    reason = "EVIDENCE_SWAPPED"


class SessionOfAnother(MeshError):
    """The session that a decision stands on is about another than the decision."""

    code = Code.DATA_LOSS
    reason = "SESSION_OF_ANOTHER"


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a decision stands on, and between which times it was made, Unix seconds."""

    document: bytes
    since: int
    until: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Decides again what a log holds."""

    log: InLog
    filed: Mapping[bytes, bytes] = field(default_factory=dict)
    """Evidence from elsewhere, by the digest that it is filed under."""

    def run(self) -> list[Replayed]:
        """Decide everything again. Raises `PolicyWithheld`."""
        return [self._decide(index, body) for index, body in self.log.decisions]

    def _decide(self, index: int, body: Mapping[str, Any]) -> Replayed:
        try:
            logged = read_decision(body)
        except DecisionMalformed as error:
            named = str(body.get("decision")), str(body.get("spiffe_id"))
            return Replayed(index, *named, None, "?", Verdict.DIFFERENT, error.reason, None, str(error))
        said = index, logged.decision, logged.spiffe_id, logged.policy_version, logged.recorded
        try:
            basis = self._basis(logged)
        except MeshError as error:
            return Replayed(*said, Verdict.DIFFERENT, error.reason, None, str(error))
        if basis is None:
            return Replayed(*said, Verdict.NOT_REPEATABLE, note=_why_not(logged))
        policy = self.log.policies.get(logged.policy_version or 0)
        if policy is None:
            raise PolicyWithheld(f"entry {index} was decided under version {said[3]}, which is nowhere in the log")
        first, note = self._judge(logged, policy, basis, basis.since, self.log.revoked_before(index, basis.since)), ""
        repeated = first
        if not logged.is_given and _outcome(first) != logged.recorded:
            repeated, note = self._judge_later(index, logged, policy, basis)
        if _outcome(repeated) != logged.recorded:
            return Replayed(*said, Verdict.DIFFERENT, _outcome(first), _rule(first), str(first.refusal or ""))
        return Replayed(*said, Verdict.SAME, logged.recorded, _rule(repeated), note)

    def _judge_later(self, index: int, logged: LoggedDecision, policy: Policy, basis: _Basis) -> tuple[Decision, str]:
        """Judge what was taken away as of any time after it was given, and say what is to be known of the judgement.

        It may have been taken away by a revocation that reached the log after it, never given against one; and what
        grows too old does so some time before its session ends.
        """
        every = [signed for _, signed in self.log.revocations]
        revoked = self._judge(logged, policy, basis, basis.since, every)
        if _outcome(revoked) == logged.recorded:
            before = {signed.revocation.id for place, signed in self.log.revocations if place < index}
            is_later = any(signed.revocation.id not in before for signed in revoked.revocations)
            return revoked, LATER if is_later else ""
        until = max(min(basis.until, policy.not_after - 1), basis.since)
        return self._judge(logged, policy, basis, until, self.log.revoked_before(index, until)), AGED

    def _basis(self, logged: LoggedDecision) -> _Basis | None:
        """Return what a decision stands on, or None when it is not to be had.

        Raises `DecisionWithheld`, `EvidenceSwapped`, `SessionOfAnother` and what a session or evidence is refused with.
        """
        if logged.evidence_sha256 is None:
            return None
        digest = bytes.fromhex(logged.evidence_sha256)
        if logged.session_id is None:
            # A document that was given counts before the log's own, so that a wrong one is noticed.
            document = self.filed.get(digest) or self.log.evidence.get(digest)
            if document is None:
                return None
            issued_at = evidences.parse(_of_digest(document, digest)).challenge.issued_at
            return _Basis(document, issued_at, issued_at)
        if (sealed := self.log.sessions.get(logged.session_id)) is None:
            raise DecisionWithheld("the session that it stands on is nowhere in the log")
        session = verify_session(sealed, logged.session_id)
        if session.upstream_name != logged.spiffe_id:
            raise SessionOfAnother(f"the session that it stands on is about {session.upstream_name[:100]}")
        return _Basis(_of_digest(session.evidence, digest), session.established_at, session.expires_at - 1)

    def _judge(
        self,
        logged: LoggedDecision,
        policy: Policy,
        basis: _Basis,
        now: int,
        revocations: Iterable[SignedRevocation],
    ) -> Decision:
        refusal: MeshError | None = None
        try:
            verify_valid_at(policy, now)
        except MeshError as error:
            refusal = error
        challenge = SignedBy(self.log.authorities.ca_spki, policy.evidence_max_age_seconds)
        terms = DocumentTerms(now, logged.role, challenge, None)
        revoked = RevocationSet().union(revocations)
        return decide(Question(basis.document, policy, refusal, revoked, logged.spiffe_id, terms))


def _of_digest(document: bytes, digest: bytes) -> bytes:
    if hashlib.sha256(document).digest() != digest:
        raise EvidenceSwapped(f"the evidence is another than {digest.hex()}, which the decision names")
    return document


def _outcome(decision: Decision) -> str:
    return ADMITTED if decision.refusal is None else decision.refusal.reason


def _rule(decision: Decision) -> str | None:
    return None if decision.deciding is None else decision.deciding.member


def _why_not(logged: LoggedDecision) -> str:
    if logged.of_a_person:
        return "a person's certificate, issued on an operator's signature"
    if logged.evidence_sha256 is None:
        return "the log names no evidence of it"
    return f"evidence {logged.evidence_sha256} was not given"
