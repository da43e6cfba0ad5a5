"""It is responsible for repeating a past appraisal from its bundle, offline, and for saying whether it came out alike.

The record that is made anew is `libs.audit.repetition`'s, as the archive's was; the steps are shown beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from libs import jcs
from libs.audit.repetition import Repeated, examine_again
from libs.errors import MeshError
from libs.tee import archived
from libs.tee.appraisal import OwnNonce
from libs.tee.archived import AppraisalRecord, Question
from libs.tee.steps import Record
from services.cli.evidence.appraisal import Accepted, Examination, Refused, accepted
from services.cli.evidence.inputs import named
from services.cli.evidence.report import Judged, print_judged
from services.cli.terminal.inputs import read_input
from services.cli.terminal.words import Json, plain

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
        before, now = _texts(recorded.appraisal), _texts(repeated.appraisal)
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
    steps = Record()
    with named(path):
        again = examine_again(data, steps)
    record, examination = again.bundle.record, again.examination
    question = record.question
    judged = Judged(
        digest=record.evidence,
        now=question.now,
        policy=again.policy,
        policy_source=str(path),
        signatures=_UNSIGNED,
        policy_refusal=None,
        binding=_binding(question),
        examination=Examination(tuple(steps.steps), _verdict(again)),
        advice=(),
    )
    return Repetition(judged, record, examination.record)


def _verdict(again: Repeated) -> Accepted | Refused:
    verdict = again.examination.verdict
    if isinstance(verdict, MeshError):
        return Refused(again.bundle.record.question.role, verdict)
    return accepted(verdict, again.policy)


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


def _texts(appraisal: Mapping[str, Json]) -> Mapping[str, bytes]:
    """A record is compared to the byte, and to Python `True` is 1."""
    return {name: jcs.dumps(value) for name, value in appraisal.items()}


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
