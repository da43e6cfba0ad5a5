"""`teemesh evidence` as a command: its exit statuses, and its manual."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.cli.__main__ import main
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, UNUSABLE
from tests.unit.libs.tee.bench import DAY, NOW
from tests.unit.services.cli.evidence_desk import (
    Desk,
    appraise,
    bench,
    desk,
    teemesh,
)

__all__ = ["appraise", "bench", "desk", "teemesh"]


def test_the_command_line_knows_the_three_statuses(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    appraise = ["evidence", "appraise", "evidence.json", "--policy", "policy.json", "--ca", "ca.pem"]
    assert main([*appraise, "--now", str(NOW)]) == ACCEPTED
    assert main([*appraise, "--now", str(NOW + 2 * DAY)]) == REFUSED
    assert main(["evidence", "show", "nowhere"]) == UNUSABLE
    assert capsys.readouterr().err.startswith("teemesh: INPUT_UNREADABLE: cannot read nowhere")


def test_fetching_overwrites_nothing_and_needs_a_mesh(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    fetch = ["evidence", "fetch", "--state", str(desk.folder / "mesh"), "--role", "kms", "--out"]
    assert main([*fetch, "evidence.json"]) == 1
    assert capsys.readouterr().err.startswith("teemesh: OUTPUT_EXISTS: ")
    assert main([*fetch, "new.json"]) == 1
    assert "teemesh up" in capsys.readouterr().err
    assert not (desk.folder / "new.json").exists()


def test_the_manual_says_what_to_do_about_every_reason() -> None:
    root = Path(__file__).parents[4]
    known = {
        reason
        for folder in ("tee", "gpus")
        for module in (root / "libs" / folder).rglob("*.py")
        for reason in re.findall(r'^ +reason = "([A-Z_]+)"$', module.read_text(), re.MULTILINE)
    }
    manual = (root / "docs" / "evidence.md").read_text()
    rows = [line for line in manual.splitlines() if line.startswith("| `")]
    named = re.findall(r"`([A-Z]+_[A-Z_]+)`", " ".join(row.split("|")[1] for row in rows))
    assert len(named) == len(set(named))
    assert known - set(named) == set()
    assert set(named) - known == {
        *("JSON_MALFORMED", "EVIDENCE_UNKNOWN", "EVIDENCE_MISMATCH", "APPRAISAL_UNKNOWN", "APPRAISAL_MISMATCH"),
        *("WATCH_ENDED", "SEQUENCE_NOT_HELD", "WATCHER_TOO_SLOW"),
    }
