"""It is responsible for repeating a past appraisal from its bundle, offline, and for saying whether it came out alike.

The record that is made anew is `libs.audit.repetition`'s, as the archive's was; the steps are shown beside it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from libs.audit.repetition import repeat
from libs.policy import document as policies
from libs.tee import archived
from libs.tee.appraisal import OwnNonce
from libs.tee.archived import AppraisalRecord, Bundle, Question
from services.cli.evidence_appraisal import DocumentTerms, examine_document
from services.cli.evidence_inputs import named
from services.cli.evidence_report import Judged, print_judged
from services.cli.evidence_words import Json, plain
from services.cli.inputs import read_input

_UNSIGNED = "signatures: a bundle holds none; see that operators signed the policy of this digest: teemesh policy show"


@dataclass(frozen=True, slots=True)
class Repetition:
    """A past appraisal, and the same one made now."""

    judged: Judged
    record: AppraisalRecord
    """As the bundle has it."""
    repeated: AppraisalRecord

    @property
    def is_same(self) -> bool:
        """To the byte."""
        return self.record.encode() == self.repeated.encode()

    @property
    def differing(self) -> tuple[str, ...]:
        """Where both accept: the members of the two verdicts that differ."""
        recorded, repeated = self.record.outcome, self.repeated.outcome
        if isinstance(recorded, archived.Refused) or isinstance(repeated, archived.Refused):
            return ()
        before, now = recorded.appraisal, repeated.appraisal
        return tuple(sorted(name for name in {*before, *now} if before.get(name) != now.get(name)))

    def to_json(self) -> dict[str, Json]:
        return {
            "same": self.is_same,
            "record": self.record.digest.hex(),
            "repeated_record": self.repeated.digest.hex(),
            "recorded_outcome": _outcome(self.record),
            "repeated_outcome": _outcome(self.repeated),
            "differing": self.differing,
            "appraisal": self.judged.to_json(),
        }


def repeat_bundle(path: Path) -> Repetition:
    """Judge a bundle's evidence again, under its policy and at its time.

    Raises `InputUnreadable`, `ArchiveMalformed`.
    """
    data = read_input(path)
    with named(path):
        repeated = AppraisalRecord.decode(repeat(data))
        bundle = Bundle.decode(data)
    policy = policies.parse(bundle.policy)
    question = bundle.record.question
    terms = DocumentTerms(question.now, question.role, question.challenge, question.spki)
    judged = Judged(
        digest=bundle.record.evidence,
        now=question.now,
        policy=policy,
        policy_source=str(path),
        signatures=_UNSIGNED,
        policy_refusal=None,
        binding=_binding(question),
        examination=examine_document(bundle.evidence, policy, terms),
        advice=(),
    )
    return Repetition(judged, bundle.record, repeated)


def print_repetition(repetition: Repetition, console: Console) -> None:
    """Print every step as `appraise` does; the last line says whether the record is the same."""
    print_judged(repetition.judged, console)
    record = repetition.record
    if repetition.is_same:
        words = Text.assemble(("SAME", "bold green"), f" record to the byte: {record.digest.hex()}")
    else:
        differing = f"; they differ in {', '.join(repetition.differing)}" if repetition.differing else ""
        words = Text.assemble(
            ("OTHER", "bold red"),
            f" record: the bundle's {record.digest.hex()} says {plain(_outcome(record))}, repeating gives "
            f"{repetition.repeated.digest.hex()}, which says {plain(_outcome(repetition.repeated) + differing)}",
        )
    console.print(words, soft_wrap=True)


def _outcome(record: AppraisalRecord) -> str:
    outcome = record.outcome
    if isinstance(outcome, archived.Refused):
        return f"refused with {outcome.reason} at step {outcome.step}"
    return "accepted"


def _binding(question: Question) -> str:
    challenge = question.challenge
    if isinstance(challenge, OwnNonce):
        words = "the nonce that the record names"
    else:
        issuer = hashlib.sha256(challenge.ca_spki_der).hexdigest()
        words = (
            f"a challenge signed by the key with SHA-256 {issuer}, at most {challenge.max_age_seconds} s old, as the "
            "record names them"
        )
    return f"{words}; its key is {'not ' if question.spki is None else ''}compared"
