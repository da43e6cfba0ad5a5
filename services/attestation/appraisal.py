"""It is responsible for appraising under the current policy, and for leaving a record of what was evidence.

A verdict is given only once its record is durable, so whatever this service said of evidence can be looked up and
repeated. What never was evidence leaves none: the archive is bounded, and anybody could fill it with that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from libs import jcs
from libs.audit.repetition import Examination, examine
from libs.errors import Code, MeshError
from libs.identity.challenges import Challenges
from libs.identity.freshness import PolicyKeeper
from libs.policy.document import Policy
from libs.policy.revocation import RevocationSet
from libs.policy.revoked import NOTHING_REVOKED
from libs.policy.succession import verify_valid_at
from libs.policy.vocabulary import EVIDENCE_ROLES
from libs.tee import evidence as evidences
from libs.tee.appraisal import OwnNonce
from libs.tee.archived import AppraisalRecord, Bundle, Question
from libs.tee.ear import Signer, Subject, sign_ear
from services.attestation.archive import Archive
from services.attestation.feed import Feed, Made

PURPOSE = "appraisal"
"""What a challenge must have been created for."""

log = structlog.get_logger()


class RoleUnknown(MeshError):
    """No service of a mesh has that role."""

    code = Code.INVALID_ARGUMENT
    reason = "ROLE_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A record that is in the archive, and what makes a later one differ from it."""

    digest: bytes
    # SHA-256 of the evidence document and of the canonical policy document.
    evidence: bytes
    policy: bytes
    # Reason; None when all accepted.
    refusal: str | None

    def says_as_much_as(self, record: AppraisalRecord, refusal: str | None) -> bool:
        return (self.evidence, self.policy, self.refusal) == (record.evidence, record.policy, refusal)


class Appraisals:
    """Judges for the record, and tells those who watch."""

    def __init__(self, archive: Archive, feed: Feed) -> None:
        self._archive = archive
        self._feed = feed

    async def make(
        self,
        document: bytes,
        policy: Policy,
        question: Question,
        *,
        spiffe_id: str = "",
        last: Recorded | None = None,
    ) -> tuple[Examination, Recorded | None]:
        """Appraise; return what came out, refusals included, and its record: None where it never was evidence, or where
        the verdict rests on a revocation.

        Where `last`, an earlier record about the same node, says as much and is still held, it stands for this one.
        Raises `ArchiveUnavailable`, `PolicyNotValidNow`, and `ArchiveMalformed` for a document that is no text at all.
        """
        # Whoever repeats it asks the same.
        verify_valid_at(policy, question.now)
        examination, bundle = await asyncio.to_thread(_examine, document, policy, question)
        refusal = None if examination.refusal is None else examination.refusal.reason
        recorded = None if bundle is None else await self._record(bundle, refusal, last)
        self._feed.publish(
            Made(
                record_digest=b"" if recorded is None else recorded.digest,
                evidence_digest=examination.record.evidence,
                role=question.role,
                spiffe_id=spiffe_id,
                policy_version=policy.version,
                appraised_at=question.now,
                refusal=refusal,
            )
        )
        return examination, recorded

    async def _record(self, bundle: Bundle, refusal: str | None, last: Recorded | None) -> Recorded:
        record = bundle.record
        if last is not None and last.says_as_much_as(record, refusal) and await self._archive.holds(last.digest):
            return last
        return Recorded(await self._archive.keep(bundle), record.evidence, record.policy, refusal)


@dataclass(frozen=True, slots=True)
class Answer:
    """An accepted appraisal: as canonical JSON, as a signed result, and where its record is."""

    appraisal: bytes
    result: str
    record_digest: bytes


class Appraiser:
    """Spends a challenge of this service and judges the evidence that answers it."""

    def __init__(
        self,
        challenges: Challenges,
        policy: PolicyKeeper,
        appraisals: Appraisals,
        signer: Callable[[], Signer],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._challenges = challenges
        self._policy = policy
        self._appraisals = appraisals
        self._signer = signer
        self._clock = clock

    async def appraise(self, document: bytes, role: str) -> Answer:
        """Raises `ChallengeNotOpen`, `RoleUnknown` and every appraisal refusal.

        A refused document has spent its challenge too. What cannot be read, or names no open challenge, is not
        appraised.
        """
        if role not in EVIDENCE_ROLES:
            raise RoleUnknown("ask for the role of a service")
        challenge = (await asyncio.to_thread(evidences.parse, document)).challenge
        policy = self._policy.require_fresh()
        self._challenges.spend(challenge.nonce, PURPOSE)
        question = Question(role, int(self._clock()), None, OwnNonce(challenge.nonce))
        examination, recorded = await self._appraisals.make(document, policy, question)
        verdict = examination.verdict
        if isinstance(verdict, MeshError):
            raise verdict
        if recorded is None:
            raise AssertionError("what is accepted is recorded")
        log.info("evidence appraised", role=role, record=recorded.digest.hex())
        subject = Subject(
            appraisal=verdict,
            nonce=challenge.nonce,
            policy_digest=policy.digest,
            development=bool(policy.development_roots),
            record_digest=recorded.digest,
        )
        # Claims may be long, and so may writing them.
        return await asyncio.to_thread(_answer, subject, self._signer())


def _examine(document: bytes, policy: Policy, question: Question) -> tuple[Examination, Bundle | None]:
    """Judge, and return the bundle that anybody can repeat it from, if there is one."""
    examination = examine(document, policy, question)
    bundle = Bundle.of(examination.record, document, policy.document)
    bundle.encode()  # What could not be given out later is not judged for the record now.
    if not examination.is_of_an_answer or _rests_on_a_revocation(examination, document, policy, question):
        return examination, None
    return examination, bundle


def _rests_on_a_revocation(examination: Examination, document: bytes, policy: Policy, question: Question) -> bool:
    """A bundle holds the policy's document alone: repeated from it, such a refusal would come out accepted."""
    if policy.revoked == NOTHING_REVOKED or examination.refusal is None:
        return False
    return examine(document, policy.under(RevocationSet()), question).record != examination.record


def _answer(subject: Subject, signer: Signer) -> Answer:
    return Answer(jcs.dumps(subject.appraisal.to_json()), sign_ear(subject, signer), subject.record_digest)
