"""Responsible for appraisals that can be repeated: the same evidence, policy and question give the same record.

Whoever appraises for the record and whoever repeats it later call one function, so the two can only agree.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from libs.errors import MeshError
from libs.policy import document as policies
from libs.policy.document import Policy
from libs.policy.succession import PolicyNotValidNow, verify_valid_at
from libs.tee import evidence as evidences
from libs.tee.appraisal import Appraisal, appraise
from libs.tee.archived import Accepted, AppraisalRecord, ArchiveMalformed, Bundle, Question, Refused
from libs.tee.evidence import Evidence
from libs.tee.steps import SILENT, Begun, Steps

_SIZE_AND_SHAPE = 1
_BINDING = 5


@dataclass(frozen=True, slots=True)
class Examination:
    """An appraisal for the record: it accepted, or there is a refusal."""

    record: AppraisalRecord
    # None for a document that could not be read.
    evidence: Evidence | None
    verdict: Appraisal | MeshError

    @property
    def refusal(self) -> MeshError | None:
        return self.verdict if isinstance(self.verdict, MeshError) else None

    @property
    def is_of_an_answer(self) -> bool:
        """Whether the evidence was proven to answer what was asked: all steps through the binding passed.

        Before that anybody's bytes may be anything; only from there on they are somebody's evidence.
        """
        outcome = self.record.outcome
        return isinstance(outcome, Accepted) or outcome.step > _BINDING


@dataclass(frozen=True, slots=True)
class Repeated:
    """A past appraisal and the same one made now."""

    bundle: Bundle
    policy: Policy
    examination: Examination


def examine(document: bytes, policy: Policy, question: Question, steps: Steps = SILENT) -> Examination:
    """Appraise a document under a policy. It takes milliseconds of computing and raises no refusal."""
    begun = Begun(steps)
    evidence: Evidence | None = None
    verdict: Appraisal | MeshError
    try:
        with begun.step(_SIZE_AND_SHAPE) as note:
            evidence = evidences.parse(document, note)
        verdict = appraise(evidence, policy.rules(question.role), question.context(policy.version), begun)
    except MeshError as refusal:
        verdict = refusal
    record = AppraisalRecord(
        evidence=hashlib.sha256(document).digest(),
        policy=policy.digest,
        question=question,
        outcome=_outcome(verdict, begun.number),
    )
    return Examination(record, evidence, verdict)


def repeat(bundle: bytes) -> bytes:
    """Return the record that a bundle's evidence and policy give at the record's own time.

    The record in the bundle is not believed: it holds if it is, byte for byte, what this returns. Raises what
    `examine_again` raises.
    """
    return examine_again(bundle).examination.record.encode()


def examine_again(bundle: bytes, steps: Steps = SILENT) -> Repeated:
    """Appraise the evidence in a bundle under its policy and at its record's time, as `repeat` does.

    Whether operators signed the policy is not judged here. Raises `ArchiveMalformed`, also for a time outside the
    policy's validity: no service judges then.
    """
    parts = Bundle.decode(bundle)
    try:
        policy = policies.parse(parts.policy)
        verify_valid_at(policy, parts.record.question.now)
    except PolicyNotValidNow as error:
        raise ArchiveMalformed(f"the record's time lies outside the policy's validity: {error}") from error
    except MeshError as error:
        raise ArchiveMalformed(f"the bundle holds no policy: {error}") from error
    if policy.document != parts.policy:
        raise ArchiveMalformed("the policy is not canonical JSON (RFC 8785)")
    return Repeated(parts, policy, examine(parts.evidence, policy, parts.record.question, steps))


def _outcome(verdict: Appraisal | MeshError, step: int) -> Accepted | Refused:
    return Refused.by(verdict, step) if isinstance(verdict, MeshError) else Accepted(verdict.to_json())
