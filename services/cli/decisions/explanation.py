"""It is responsible for which rule decides whether evidence is admitted to a role.

The judgement is the one that every service makes. What a refusal does not say of itself is found by judging again under
the same policy without the rule in question: the one without which the evidence gets further is the one that decided.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from libs.errors import MeshError
from libs.identity.revoked import verify_not_revoked
from libs.policy.deciding import (
    Deciding,
    deciding_measurement,
    deciding_refusal,
    deciding_revocation,
    deciding_validity,
    is_about_patch_levels,
    of_role,
)
from libs.policy.document import Policy
from libs.policy.revocation import RevocationSet, SignedRevocation
from libs.policy.revoked import NOTHING_REVOKED
from libs.policy.succession import PolicyNotValidNow
from libs.tee import evidence as evidences
from libs.tee.evidence import Evidence
from services.cli.evidence.appraisal import Accepted, DocumentTerms, Refused, examine_document

_MEASUREMENT = 8
_NO_MEMBER = "nothing in a policy: it is the evidence that is broken, old or not genuine (docs/evidence.md)"


@dataclass(frozen=True, slots=True)
class Question:
    """Would this evidence be admitted?"""

    document: bytes
    policy: Policy
    """As its document says; `revocations` are counted beside it."""
    policy_refusal: MeshError | None
    """Why the policy is not in force, if it is not: then nothing is admitted."""
    revocations: RevocationSet
    spiffe_id: str | None
    """Of the instance that shows the evidence; None: revocations of instances are not judged."""
    terms: DocumentTerms


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, and what decided it."""

    role: str | None
    """None: the evidence could not be read, and nobody said for which role."""
    accepted: Accepted | None
    refusal: MeshError | None
    """None when admitted."""
    step: int | None
    """The step of the appraisal that decided; None: it was decided before any evidence was looked at."""
    deciding: Deciding | None
    """None: no member of the policy."""
    revocations: tuple[SignedRevocation, ...] = ()
    """Those that decided. Every one of them would have to be lifted."""

    @property
    def change(self) -> str:
        """What would have to change for another decision; empty when admitted."""
        if self.refusal is None:
            return ""
        return _NO_MEMBER if self.deciding is None else self.deciding.change


@dataclass(frozen=True, slots=True)
class _Verdict:
    role: str | None
    step: int | None
    outcome: Accepted | MeshError

    @property
    def reason(self) -> str | None:
        return self.outcome.reason if isinstance(self.outcome, MeshError) else None

    def is_as(self, other: _Verdict) -> bool:
        return (self.step, self.reason) == (other.step, other.reason)


def decide(question: Question) -> Decision:
    """Answer. Raises `InputUnreadable` when nobody says for which role."""
    if question.policy_refusal is not None:
        return _not_in_force(question, question.policy_refusal)
    policy = question.policy.under(question.revocations)
    verdict = _judge(question, policy)
    outcome = verdict.outcome
    if isinstance(outcome, Accepted):
        rule = deciding_measurement(policy, outcome.role, outcome.measurement)
        return Decision(outcome.role, outcome, None, _MEASUREMENT, Deciding(rule, ""))
    if revocations := tuple(_deciding_revocations(question, verdict)):
        deciding = deciding_revocation(revocations[0].revocation.id)
        return Decision(verdict.role, None, outcome, verdict.step, deciding, revocations)
    return Decision(verdict.role, None, outcome, verdict.step, _deciding_member(question, verdict, outcome))


def _not_in_force(question: Question, refusal: MeshError) -> Decision:
    policy, role = question.policy, question.terms.role
    if isinstance(refusal, PolicyNotValidNow):
        return Decision(role, None, refusal, None, deciding_validity(policy, question.terms.now))
    return Decision(role, None, refusal, None, deciding_refusal(refusal.reason, policy, role or "", "", {}))


def _judge(question: Question, policy: Policy) -> _Verdict:
    """Judge as a service does: whether key or instance is revoked counts before the steps."""
    examination = examine_document(question.document, policy, question.terms)
    outcome, step = examination.outcome, examination.steps[-1].number
    if (evidence := _read(question.document)) is not None:
        try:
            verify_not_revoked(hashlib.sha256(evidence.spki).digest(), question.spiffe_id or "", policy)
        except MeshError as refusal:
            return _Verdict(outcome.role, None, refusal)
    return _Verdict(outcome.role, step, outcome.refusal if isinstance(outcome, Refused) else outcome)


def _deciding_revocations(question: Question, verdict: _Verdict) -> Iterator[SignedRevocation]:
    """Yield the revocations with each of which alone the evidence is refused as it was, and without which it is not."""
    if _judge(question, replace(question.policy, revoked=NOTHING_REVOKED)).is_as(verdict):
        return
    for signed in question.revocations.signed.values():
        if _judge(question, question.policy.under(RevocationSet().union([signed]))).is_as(verdict):
            yield signed


def _deciding_member(question: Question, verdict: _Verdict, refusal: MeshError) -> Deciding | None:
    evidence, role = _read(question.document), verdict.role
    if evidence is None or role is None:
        return None
    policy = question.policy
    deciding = deciding_refusal(refusal.reason, policy, role, evidence.tee_type, evidence.claims)
    if deciding is None or not is_about_patch_levels(deciding) or role not in policy.roles:
        return deciding
    grants = {**policy.roles, role: replace(policy.roles[role], tcb=None)}
    without = _judge(question, replace(policy, roles=grants).under(question.revocations))
    return deciding if without.is_as(verdict) else of_role(deciding, role)


def _read(document: bytes) -> Evidence | None:
    try:
        return evidences.parse(document)
    except MeshError:
        return None  # The first step says why.
