"""Stages of pipelines in the second reading: held to their form, and to the key of the job that they stand under."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.audit.log.entries import EntryWrong, PublicEntry
from libs.audit.log.findings import Status
from libs.audit.log.notes import Key
from libs.audit.log.reading import Part, Reading
from libs.audit.log.stages import judge_stage
from libs.events.keyset import PreviousIssuer
from libs.events.pipeline import MAX_ARTIFACTS, Artifact, Stage, StageMalformed, Step, parse_stage
from libs.events.privacy import Privacy
from libs.events.records import Entry, seal
from libs.events.stage_signature import sign_stage
from libs.transparency.leaf import Kind
from services.ledger.intake.sequencer import Candidate
from tests.fakes.lineages import NO_PRIVACY
from tests.fakes.written_log import ORIGIN, Author, WrittenLog

from .conftest import read, said

READ = Artifact("corpus", b"\x03" * 32, made_by=b"\x02" * 32)
MADE = Artifact("weights", b"\x01" * 32)
STAGE = Stage(Step.TRAINING, "first", (READ,), (MADE,), b"\x05" * 32, 1_000, 2_000).body()
SIGNED = {**STAGE, "signature": "06" * 64}


def signed(log: WrittenLog) -> Reading:
    """Read a log whose auditor has signed all of it."""
    log.sign()
    return read(log.files())


@pytest.fixture
def job() -> Author:
    return Author("job")


@pytest.fixture
def begun(log: WrittenLog, job: Author) -> WrittenLog:
    """A log that a job has written to."""
    log.append([log.ledger.introduce()], [log.ledger.start()], [job.introduce()])
    return log.append([job.entry(Kind.PIPELINE, STAGE)])


def forced(job: Author, change: Callable[[Entry], Entry]) -> Candidate:
    """The job's third entry as a ledger's writer makes it up that has the job's name and not its key."""
    before = Entry(Kind.PIPELINE, job.id, 3, job._previous, None, STAGE)
    entry = change(before)
    record = seal(entry.canonical(), entry.kind, job.id, 3, bytes(32), None)
    header = record.header
    return Candidate(entry.kind, job.id, 3, header.commitment, header.vault_epoch, header.vault_id, record.body)


def test_stages_that_jobs_signed_are_sound(begun: WrittenLog, job: Author) -> None:
    reading = signed(begun.append([job.entry(Kind.PIPELINE, STAGE)]))
    assert (reading.findings.worst, reading.findings.remarks) == (Status.SOUND, [])


FORGERIES: dict[str, Callable[[Author, Entry], Entry]] = {
    "another job's key": lambda job, entry: sign_stage(entry, Author("job").key),
    "edited": lambda job, entry: _edited(sign_stage(entry, job.key), name="another"),
    "of another number": lambda job, entry: _moved(sign_stage(replace(entry, issuer_seq=2), job.key), issuer_seq=3),
    "of another run": lambda job, entry: _moved(
        sign_stage(replace(entry, issuer=Author("job").id), job.key), issuer=entry.issuer
    ),
    "zeros": lambda job, entry: _edited(entry, signature="00" * 64),
}


def _edited(entry: Entry, **members: Any) -> Entry:
    return replace(entry, body={**entry.body, **members})


def _moved(entry: Entry, **place: Any) -> Entry:
    return replace(entry, **place)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_stage_that_its_job_did_not_sign_is_found(begun: WrittenLog, job: Author, forgery: str) -> None:
    begun.force(forced(job, lambda entry: FORGERIES[forgery](job, entry)))
    reading = signed(begun)
    assert reading.findings.worst is Status.UNPROVEN
    assert "the stage is not signed by the job that it stands under" in said(reading)


def test_stages_of_before_there_were_signatures_are_counted(begun: WrittenLog, job: Author) -> None:
    begun.force(forced(job, lambda entry: _edited(entry, v=1)))
    reading = signed(begun)
    assert reading.findings.worst is Status.SOUND
    assert [each[:34] for each in reading.findings.remarks] == ["1 stages of pipelines are unsigned"]


def test_a_stage_that_lost_its_signature_is_damage(begun: WrittenLog, job: Author) -> None:
    begun.force(forced(job, lambda entry: entry))
    assert signed(begun).findings.worst is Status.DAMAGED


def test_in_a_part_of_the_log_the_form_is_held_and_who_signed_is_left_open(begun: WrittenLog, job: Author) -> None:
    begun.append([job.entry(Kind.PIPELINE, STAGE)])
    begun.sign()
    files = {name: data for name, data in begun.files().items() if not name.endswith("00000000.seg")}
    reading = read(files, part=Part(4, is_to_end=True), keys=(Key(ORIGIN, begun.ledger.vkey.public_key),))
    assert reading.findings.worst is Status.SOUND
    assert any("who signed, cannot be told" in each for each in reading.findings.remarks)


def test_a_job_that_writes_on_after_its_next_start_is_found(begun: WrittenLog, job: Author) -> None:
    later = Author("job", previous=PreviousIssuer(job.id, 2))
    begun.append([later.introduce()])
    assert signed(begun).findings.worst is Status.SOUND
    begun.force(job.entry(Kind.PIPELINE, STAGE))
    reading = signed(begun)
    assert reading.findings.worst is Status.UNPROVEN
    assert "writes on, though its next start closed its sequence at 2" in said(reading)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 0},
        {"v": 3},
        {"v": True},
        {"v": "2"},
        {"more": 1},
        {"stage": "distillation"},
        {"stage": ["training"]},
        {"name": ""},
        {"name": "two\nlines"},
        {"name": 1},
        {"outputs": []},
        {"outputs": [READ.members()]},
        {"outputs": {}},
        {"inputs": None},
        {"inputs": ["corpus"]},
        {"inputs": [{"name": "x", "sha256": "00"}]},
        {"inputs": [{"name": "x"}]},
        {"inputs": [{**READ.members(), "made_by": None}]},
        {"inputs": [{**READ.members(), "more": 1}]},
        {"inputs": [READ.members(), READ.members()]},
        {"inputs": [Artifact(f"part {number}", bytes(32)).members() for number in range(MAX_ARTIFACTS + 1)]},
        {"parameters_sha256": "AB" * 32},
        {"began_ms": -1},
        {"began_ms": 2_001},
        {"ended_ms": False},
        {"signature": "06" * 63},
        {"signature": "0G" * 64},
        {"signature": 6},
        {"signature": None},
        {"v": 1},
    ],
)
def test_both_readings_refuse_what_is_no_stage(change: dict[str, Any]) -> None:
    _refused_by_both({**SIGNED, **change})


@pytest.mark.parametrize("name", SIGNED)
def test_both_readings_miss_what_is_missing(name: str) -> None:
    _refused_by_both({member: value for member, value in SIGNED.items() if member != name})


PRIVACY = Privacy("7.3051", "0.00001", "worker", 2, "opendp", "0.16.0").members()


@pytest.mark.parametrize("change", [*NO_PRIVACY, *({name: None} for name in PRIVACY)])
def test_both_readings_refuse_what_says_nothing_of_privacy(change: dict[str, Any]) -> None:
    _refused_by_both({**SIGNED, "privacy": {**PRIVACY, **change}})


@pytest.mark.parametrize("privacy", [None, "7.3", {}, {"epsilon": "7.3"}])
def test_both_readings_refuse_another_form_of_it(privacy: Any) -> None:
    _refused_by_both({**SIGNED, "privacy": privacy})
    _refused_by_both({**STAGE, "v": 1, "privacy": PRIVACY})


@pytest.mark.parametrize("step", Step)
def test_both_readings_take_the_same_stages(step: Step) -> None:
    for body in (
        SIGNED,
        {**SIGNED, "privacy": PRIVACY},
        {**SIGNED, "inputs": []},
        {**STAGE, "v": 1},
        {**SIGNED, "ended_ms": 1_000},
    ):
        parse_stage({**body, "stage": step.value})
        assert judge_stage(_entry({**body, "stage": step.value}), None) == (body["v"] == 2)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.text("ab01.é\n", max_size=66) | st.just("ab" * 32),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "sha256", "v"]), inner),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None)
@given(
    name=st.sampled_from([*SIGNED, "privacy", "made_by"]), below=st.sampled_from(["", "privacy", "in"]), value=VALUES
)
def test_both_readings_agree_on_whatever_is_put_into_a_stage(name: str, below: str, value: Any) -> None:
    body = {**SIGNED, "privacy": dict(PRIVACY)}
    if below == "":
        body[name] = value
    elif below == "privacy":
        body["privacy"] = {**PRIVACY, sorted(PRIVACY)[len(name) % len(PRIVACY)]: value}
    else:
        body["inputs"] = [{**READ.members(), ("name", "sha256", "made_by")[len(name) % 3]: value}]
    assert _read_first(body) == _read_second(body)


def _read_first(body: Mapping[str, Any]) -> bool:
    try:
        parse_stage(body)
    except StageMalformed:
        return False
    return True


def _read_second(body: Mapping[str, Any]) -> bool:
    try:
        judge_stage(_entry(body), None)
    except EntryWrong:
        return False
    return True


def _refused_by_both(body: Mapping[str, Any]) -> None:
    with pytest.raises(StageMalformed):
        parse_stage(body)
    with pytest.raises(EntryWrong):
        judge_stage(_entry(body), None)


def _entry(body: Mapping[str, Any]) -> PublicEntry:
    return PublicEntry(int(Kind.PIPELINE), b"\x09" * 32, 2, bytes(32), body)
