"""What `fsck` says of a log is what a start makes of it, and no byte of the log is another afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from libs.events.erasure import Authority, ErasureOrdered
from libs.events.records import Entry
from libs.policy.vault_orders import VaultPart
from libs.transparency.leaf import Kind
from services.ledger.fsck import check, main, remove_derived
from services.ledger.intake.owed import NAME as OWED_LOG
from services.ledger.intake.rejections import NAME as QUARANTINE_LOG
from services.ledger.intake.sequencer import Candidate
from services.ledger.replication.keyring_copy import KeyringCopy, KeyringCopyFile
from services.ledger.replication.promise import FOLDER as REPLICATION
from services.ledger.replication.promise import Extent, Promise, PromiseFile
from services.ledger.storage import derived, keyring, records_log, segments, watermark
from services.ledger.storage.damage import LogDamaged, LogLocked, LogMissing, LogRolledBack
from services.ledger.storage.keyring import Keyring, KeyringFile
from services.ledger.storage.segment_files import SEGMENTS

from .conftest import DESCRIPTION, SMALL, SOURCE, candidate, fill, open_store, sequencer
from .test_recovery import flip, frame_ends

VAULT, MONTH = b"\x55" * 16, 671
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


@pytest.mark.parametrize(("name", "magic"), [(OWED_LOG, records_log.OWED), (QUARANTINE_LOG, records_log.QUARANTINE)])
def test_what_is_owed_and_what_was_refused_is_read_too(two_segments: Path, name: str, magic: bytes) -> None:
    kept = records_log.RecordsLog(two_segments / name, magic, 0)
    for number in range(3):
        kept.append([b"%d" % number])
    kept.close()
    assert check(two_segments, SMALL).exit_status == 0
    flip(two_segments / name, 8)
    verdict = check(two_segments, SMALL)
    assert (verdict.exit_status, verdict.file, verdict.offset) == (LogDamaged.exit_status, name, 0)


def test_log_below_a_promise_is_rolled_back(two_segments: Path) -> None:
    (two_segments / SEGMENTS / SECOND).unlink()
    verdict = check(two_segments, SMALL)
    assert (verdict.exit_status, verdict.verdict) == (LogRolledBack.exit_status, "rolled_back")
    assert f"{watermark.NAME} promises 6" in verdict.what


def sealed_entries(log: Path, *more: Candidate) -> Path:
    """Log an entry of a vault, then others."""
    with open_store(log) as store:
        first = replace(candidate(1, vault=VAULT, kind=Kind.RECEIPT), vault_epoch=MONTH)
        sequencer(store).append([first, *more], SOURCE, 1, 1)
    return log


def ordered(part: VaultPart) -> Candidate:
    said = ErasureOrdered(part, 1, Authority(1, retention_months=1))
    entry = Entry(Kind.ERASURE, b"\x11" * 32, 2, bytes(32), None, said.body())
    return candidate(2, body=bytes(32) + entry.canonical(), kind=Kind.ERASURE)


def test_missing_keyring_is_damage_where_entries_need_it(empty_log: Path) -> None:
    verdict = check(sealed_entries(empty_log, ordered(VaultPart(VAULT, MONTH + 1))), SMALL)
    assert (verdict.exit_status, verdict.file, verdict.offset) == (LogDamaged.exit_status, keyring.NAME, 0)
    assert "entry 0 is missing" in verdict.what
    KeyringFile(empty_log, DESCRIPTION.log_id).store(Keyring(1, ()), bytes(32), 1)
    assert check(empty_log, SMALL).verdict == "clean"
    (empty_log / keyring.NAME).write_bytes(b"nonsense")
    assert check(empty_log, SMALL).file == keyring.NAME


def test_no_keyring_is_missed_where_all_that_is_sealed_was_erased(empty_log: Path) -> None:
    assert check(sealed_entries(empty_log, ordered(VaultPart(VAULT, MONTH))), SMALL).verdict == "clean"


def test_no_keyring_is_missed_at_a_member_that_others_give_it_to(empty_log: Path) -> None:
    (sealed_entries(empty_log) / REPLICATION).mkdir()
    assert check(empty_log, SMALL).verdict == "clean"


@pytest.mark.parametrize("at", range(0, 200, 9))
def test_promise_on_which_a_member_ends_is_damage(two_segments: Path, at: int) -> None:
    PromiseFile(two_segments).store(Promise(4, "ledger-2", settled=True, forgotten=Extent(3, 6)))
    verdict = check(two_segments, SMALL)
    assert (verdict.verdict, "epoch 4 is promised to ledger-2" in verdict.what) == ("clean", True)
    path = two_segments / REPLICATION / "promise"
    flip(path, at % path.stat().st_size)
    with pytest.raises(LogDamaged):
        PromiseFile(two_segments).load()
    verdict = check(two_segments, SMALL)
    assert (verdict.exit_status, verdict.file) == (LogDamaged.exit_status, "replication/promise")


def test_copy_of_the_keyring_on_which_a_member_ends_is_damage(two_segments: Path) -> None:
    (two_segments / REPLICATION).mkdir()
    KeyringCopyFile(two_segments).store(KeyringCopy(4, 9, b"as a writer gave it"))
    # What an earlier writer here worked with is removed by the start that has a copy.
    (two_segments / keyring.NAME).write_bytes(b"nonsense")
    verdict = check(two_segments, SMALL)
    assert (verdict.verdict, "epoch 4, generation 9" in verdict.what) == ("clean", True)
    path = two_segments / REPLICATION / "keyring"
    for at in range(path.stat().st_size):
        flip(path, at)
        verdict = check(two_segments, SMALL)
        assert (verdict.exit_status, verdict.file) == (LogDamaged.exit_status, "replication/keyring")
        flip(path, at)


def test_keyring_that_no_key_opens_is_damage_and_any_other_is_the_keys_to_judge(two_segments: Path) -> None:
    stored = KeyringFile(two_segments, DESCRIPTION.log_id)
    stored.store(Keyring(1, ()), bytes(32), 3)
    path = two_segments / keyring.NAME
    whole = path.read_bytes()
    told = check(two_segments, SMALL)
    assert "under epoch 3 of its key, which alone can tell" in told.what
    head, tag = 20, 16
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(LogDamaged):
            stored.load(bytes(32))
        assert check(two_segments, SMALL).exit_status == (3 if length < head + tag else 0), length
    for changed in (b"TMKX" + whole[4:], whole[:4] + bytes(4) + whole[8:]):
        path.write_bytes(changed)
        verdict = check(two_segments, SMALL)
        assert (verdict.exit_status, verdict.file) == (LogDamaged.exit_status, keyring.NAME)


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
