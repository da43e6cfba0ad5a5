"""What `fsck` says of a log is what a start makes of it, and no byte of the log is another afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.ledger.fsck import check, main, remove_derived
from services.ledger.storage import derived, segments, watermark
from services.ledger.storage.damage import LogDamaged, LogLocked, LogMissing, LogRolledBack
from services.ledger.storage.segment_files import SEGMENTS

from .conftest import SMALL, fill, open_store
from .test_recovery import flip, frame_ends

FIRST, SECOND = segments.file_name(0), segments.file_name(4)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_clean_log_is_told_and_left_as_it_is(two_segments: Path) -> None:
    before = contents(two_segments)
    verdict = check(two_segments, SMALL)
    assert (verdict.exit_status, verdict.verdict, verdict.size) == (0, "clean", 6)
    assert contents(two_segments) == before


def test_torn_tail_is_told_and_not_cut(two_segments: Path) -> None:
    path = two_segments / SEGMENTS / SECOND
    end = frame_ends(path)[-1]
    flip(path, end + 3)
    before = contents(two_segments)
    verdict = check(two_segments, SMALL)
    assert (verdict.exit_status, verdict.file, verdict.offset) == (2, SECOND, end + 3)
    assert contents(two_segments) == before
    with open_store(two_segments) as store:
        assert store.report.torn is not None


def test_damage_in_a_sealed_segment_is_found_though_a_start_would_pass_over_it(two_segments: Path) -> None:
    at = frame_ends(two_segments / SEGMENTS / FIRST)[0] + 170
    flip(two_segments / SEGMENTS / FIRST, at)
    verdict = check(two_segments, SMALL)
    assert (verdict.exit_status, verdict.verdict, verdict.file) == (LogDamaged.exit_status, "damaged", FIRST)
    assert verdict.offset is not None
    assert verdict.offset <= at


def test_log_below_a_promise_is_rolled_back(two_segments: Path) -> None:
    (two_segments / SEGMENTS / SECOND).unlink()
    verdict = check(two_segments, SMALL)
    assert (verdict.exit_status, verdict.verdict) == (LogRolledBack.exit_status, "rolled_back")
    assert f"{watermark.NAME} promises 6" in verdict.what


def test_log_that_is_open_is_not_examined(two_segments: Path) -> None:
    with open_store(two_segments), pytest.raises(LogLocked, match="a ledger has the log"):
        check(two_segments, SMALL)
    with open_store(two_segments), pytest.raises(LogLocked):
        remove_derived(two_segments)


def test_copy_that_was_never_opened_is_not_written_to(two_segments: Path) -> None:
    (two_segments / "LOCK").unlink()
    assert check(two_segments, SMALL).exit_status == 0
    assert not (two_segments / "LOCK").exists()


def test_folder_without_a_log_is_said(tmp_path: Path) -> None:
    with pytest.raises(LogMissing):
        check(tmp_path)


def test_derived_files_are_removed_and_made_anew(two_segments: Path) -> None:
    folder = two_segments / derived.FOLDER
    with open_store(two_segments):
        made = contents(folder)
    assert made
    assert remove_derived(two_segments) == len(made)
    assert not contents(folder)
    with open_store(two_segments) as store:
        assert store.head.size == 6
    assert contents(folder).keys() == made.keys()


def test_command_exits_with_the_verdict(two_segments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(two_segments, [[7]])
    assert main([str(tmp_path / "absent")]) == 1
    assert "LOG_MISSING" in capsys.readouterr().err
    assert main([str(two_segments), "--json"]) == LogDamaged.exit_status
    told = json.loads(capsys.readouterr().out)
    # Its blocks are smaller than the format's, which only tests have.
    assert (told["status"], told["verdict"], told["derived_removed"]) == (3, "damaged", None)
