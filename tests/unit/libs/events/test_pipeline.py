"""Stages of pipelines: read as they were written, and nothing else is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from jsonschema import ValidationError

from libs import jcs
from libs.events.pipeline import MAX_ARTIFACTS, Artifact, Stage, StageMalformed, Step, parse_stage
from libs.events.privacy import Privacy
from libs.transparency.leaf import Kind
from tests.fakes.entry_schema import require_documented
from tests.fakes.lineages import NO_PRIVACY

DATA = Artifact("claims-2026", b"\x01" * 32, made_by=b"\x02" * 32)
BASE = Artifact("smollm2-135m", b"\x03" * 32)
TUNED = Artifact("smollm2-claims", b"\x04" * 32)
STAGE = Stage(Step.FINE_TUNING, "third try", (DATA, BASE), (TUNED,), b"\x05" * 32, 1_000, 2_000)
SIGNED = {**STAGE.body(), "signature": "06" * 64}


@pytest.mark.parametrize("step", Step)
def test_a_stage_is_read_as_it_was_written(step: Step) -> None:
    for stage in (replace(STAGE, step=step), replace(STAGE, step=step, inputs=(), ended_ms=1_000)):
        body = {**SIGNED, **stage.body()}
        require_documented(Kind.PIPELINE, body)
        assert parse_stage(jcs.loads_object(jcs.dumps(body))) == stage


def test_a_stage_of_before_there_were_signatures_is_read() -> None:
    unsigned = {**STAGE.body(), "v": 1}
    require_documented(Kind.PIPELINE, unsigned)
    assert parse_stage(unsigned) == STAGE
    _require_refused({**SIGNED, "v": 1})


@pytest.mark.parametrize("name", SIGNED)
def test_every_member_must_be_there(name: str) -> None:
    body = {member: value for member, value in SIGNED.items() if member != name}
    _require_refused(body)
    _require_refused({**SIGNED, name: None})


def test_there_is_no_other_member() -> None:
    _require_refused({**SIGNED, "more": 1})
    _require_refused({**SIGNED, "inputs": [{**DATA.members(), "more": 1}]})


@pytest.mark.parametrize(
    "change",
    [
        {"v": 3},
        {"signature": "00" * 63},
        {"stage": "distillation"},
        {"name": ""},
        {"name": "two\nlines"},
        {"outputs": []},
        {"outputs": [DATA.members()]},
        {"inputs": [{"name": "x", "sha256": "00"}]},
        {"inputs": [{**DATA.members(), "made_by": None}]},
        {"inputs": [Artifact(f"part {number}", bytes(32)).members() for number in range(MAX_ARTIFACTS + 1)]},
        {"parameters_sha256": "AB" * 32},
        {"began_ms": -1},
    ],
)
def test_what_is_no_stage_is_neither_read_nor_documented(change: dict[str, Any]) -> None:
    _require_refused({**SIGNED, **change})


PRIVACY = Privacy("7.3051", "0.00001", "worker", 2, "opendp", "0.16.0")


def test_a_stage_says_what_privacy_it_spent() -> None:
    stage = replace(STAGE, privacy=PRIVACY)
    body = {**SIGNED, **stage.body()}
    require_documented(Kind.PIPELINE, body)
    assert parse_stage(body) == stage
    assert str(PRIVACY) == "epsilon 7.3051 at delta 0.00001 for one worker over 2 releases, by opendp 0.16.0"
    _require_refused({name: value for name, value in {**body, "v": 1}.items() if name != "signature"})


@pytest.mark.parametrize("change", NO_PRIVACY)
def test_what_says_nothing_of_privacy_is_neither_read_nor_documented(change: dict[str, Any]) -> None:
    _require_refused({**SIGNED, "privacy": {**PRIVACY.members(), **change}})


@pytest.mark.parametrize("name", PRIVACY.members())
def test_all_of_what_is_said_of_privacy_must_be_there(name: str) -> None:
    said = PRIVACY.members()
    del said[name]
    _require_refused({**SIGNED, "privacy": said})


def test_a_stage_does_not_end_before_it_began() -> None:
    with pytest.raises(StageMalformed, match="ended_ms"):
        parse_stage({**SIGNED, "ended_ms": 999})


def test_a_name_stands_for_one_artifact() -> None:
    with pytest.raises(StageMalformed, match="inputs names the same thing twice"):
        parse_stage({**SIGNED, "inputs": [DATA.members(), {**BASE.members(), "name": DATA.name}]})


def _require_refused(body: dict[str, Any]) -> None:
    with pytest.raises(StageMalformed):
        parse_stage(body)
    with pytest.raises(ValidationError):
        require_documented(Kind.PIPELINE, body)
