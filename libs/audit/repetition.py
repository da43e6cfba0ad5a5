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
from libs.tee.steps import Record

_SIZE_AND_SHAPE = 1
_BINDING = 5


@dataclass(frozen=True, slots=True)
class Examination:
    """An appraisal for the record: it accepted, or there is a refusal."""

    record: AppraisalRecord
    # None for a document that could not be read.
    evidence: Evidence | None
    appraisal: Appraisal | None
    refusal: MeshError | None

    @property
    def is_of_an_answer(self) -> bool:
        """Whether the evidence was proven to answer what was asked: all steps through the binding passed.

        Before that anybody's bytes may be anything; only from there on they are somebody's evidence.
        """
        outcome = self.record.outcome
        return isinstance(outcome, Accepted) or outcome.step > _BINDING


def examine(document: bytes, policy: Policy, question: Question) -> Examination:
    """Appraise a document under a policy. It takes milliseconds of computing and raises no refusal."""
    steps = Record()
    evidence: Evidence | None = None
    appraisal: Appraisal | None = None
    refusal: MeshError | None = None
    try:
        evidence = evidences.parse(document)
        appraisal = appraise(evidence, policy.rules(question.role), question.context(policy.version), steps)
    except MeshError as error:
        refusal = error
    step = steps.steps[-1].number if steps.steps else _SIZE_AND_SHAPE
    record = AppraisalRecord(
        evidence=hashlib.sha256(document).digest(),
        policy=policy.digest,
        question=question,
        outcome=_outcome(appraisal, refusal, step),
    )
    return Examination(record, evidence, appraisal, refusal)


def repeat(bundle: bytes) -> bytes:
    """Return the record that a bundle's evidence and policy give at the record's own time.

    The record in the bundle is not believed: it holds if it is, byte for byte, what this returns. Whether operators
    signed the policy is not judged here. Raises `ArchiveMalformed`, also for a time outside the policy's validity: no
    service judges then.
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
    return examine(parts.evidence, policy, parts.record.question).record.encode()


def _outcome(appraisal: Appraisal | None, refusal: MeshError | None, step: int) -> Accepted | Refused:
    if appraisal is not None:
        return Accepted(appraisal.to_json())
    if refusal is None:
        raise AssertionError("an appraisal accepts or refuses")
    return Refused.by(refusal, step)
