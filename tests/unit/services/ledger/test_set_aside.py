"""A damaged file beside the log is set aside on an order: nothing that is owed is forgotten, and the log says so."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from libs.events.consume import StreamGap
from libs.transparency.leaf import Kind
from services.cli.__main__ import main as teemesh
from services.ledger.fsck import check
from services.ledger.intake.faults import Saying, lost, quarantined
from services.ledger.intake.owed import NAME as OWED_LOG
from services.ledger.intake.owed import Owed, Part
from services.ledger.intake.rejections import NAME as QUARANTINE_LOG
from services.ledger.intake.rejections import Reason, Refusal, Rejections
from services.ledger.set_aside import FileNotSetAside, main, set_aside
from services.ledger.storage import description, keyring, watermark
from services.ledger.storage.damage import LogDamaged, LogLocked, LogMissing
from services.ledger.storage.lost_and_found import LOST_AND_FOUND
from services.ledger.storage.recovery import CHECKPOINT, CHECKPOINTS_LOG
from services.ledger.storage.segment_files import SEGMENTS
from tests.fakes.entry_schema import require_documented
from tests.faults.ledger import disk

from .conftest import SMALL, open_store
from .test_recovery import flip

ISSUER, SOURCE = b"\x0a" * 32, b"\x01" * 16
ENDS = list[int]


def refusal(number: int) -> Refusal:
    return Refusal(number, Reason.KIND_NOT_ALLOWED, "", b"record %d" % number, ISSUER, number)


def owing(log: Path) -> list[Saying]:
    """Have it owe eight sayings, in three writes, of which the first three are said. Returns all of them."""
    sayings = [lost(SOURCE, StreamGap(4, 9)), *(quarantined(refusal(number)) for number in range(1, 8))]
    with closing(Owed(log)) as owed:
        owed.add(sayings[:1])
        owed.add(sayings[1:3])
        first = owed.first()
        assert first is not None
        owed.add(sayings[3:6])
        owed.settle(Part(first.sayings, first.end))
        owed.add(sayings[6:])
    return sayings


def refusing(log: Path) -> list[int]:
    """Have it refuse seven numbers, in three writes."""
    with closing(Rejections(log)) as rejections:
        for numbers in ((1,), (2, 3, 4), (5, 6, 7)):
            rejections.keep([refusal(number) for number in numbers])
    return list(range(1, 8))


def owed_of(log: Path) -> list[Saying]:
    """What a start finds owed."""
    with closing(Owed(log)) as owed:
        sayings: list[Saying] = []
        while (part := owed.first()) is not None:
            sayings += part.sayings
            owed.settle(part)
    return sayings


def refused_of(log: Path) -> list[int]:
    with closing(Rejections(log)) as rejections:
        return [number for number, _ in rejections.of(ISSUER, 0)]


def kept_of(log: Path) -> list[bytes]:
    folder = log / LOST_AND_FOUND
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.exists() else []


def said_of(name: str, data: bytes, damaged_at: int, records: int) -> dict[str, Any]:
    return {
        "file": name,
        "size": len(data),
        "sha256": sha256(data).hexdigest(),
        "damaged_at": damaged_at,
        "records_kept": records,
    }


def is_damaged(log: Path, opening: Callable[[Path], Any]) -> bool:
    """Whether a start refuses it; one that cuts a tail changes it."""
    whole = {path: path.read_bytes() for path in log.iterdir() if path.is_file()}
    try:
        opening(log).close()
    except LogDamaged:
        return True
    for path, data in whole.items():
        path.write_bytes(data)
    shutil.rmtree(log / LOST_AND_FOUND, ignore_errors=True)
    return False


def test_damage_of_what_is_owed_costs_its_own_record_alone(empty_log: Path) -> None:
    sayings, path = owing(empty_log), empty_log / OWED_LOG
    whole, orders = path.read_bytes(), 0
    for at in range(0, len(whole), 5):
        data = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
        path.write_bytes(data)
        if not is_damaged(empty_log, Owed):
            continue
        done = set_aside(empty_log, OWED_LOG)
        assert done is not None
        assert kept_of(empty_log) == [data]
        *left, told = owed_of(empty_log)
        assert (told.kind, told.body) == (Kind.GAP, said_of(OWED_LOG, data, done.damaged_at, len(left)))
        assert done.damaged_at <= at
        missing = [each for each in sayings[3:] if each not in left]
        again = [each for each in left if each in sayings[:3]]
        # One record is damaged: one saying is missing, or what it marked as said is said again, or it was said before.
        assert (len(missing), len(again)) in ((1, 0), (0, 3), (0, 0)), at
        assert left == [each for each in sayings if each in left]
        shutil.rmtree(empty_log / LOST_AND_FOUND)
        orders += 1
    assert orders > len(whole) // 10


def test_what_was_said_is_not_said_again_where_the_mark_lies_behind_the_damage(empty_log: Path) -> None:
    sayings = owing(empty_log)
    flip(empty_log / OWED_LOG, 20)
    done = set_aside(empty_log, OWED_LOG)
    assert done is not None
    assert (done.damaged_at, done.records) == (0, 5)
    *left, told = owed_of(empty_log)
    assert left == sayings[3:]
    require_documented(told.kind, told.body)


def test_every_refusal_but_the_damaged_one_is_still_known(empty_log: Path) -> None:
    numbers, path = refusing(empty_log), empty_log / QUARANTINE_LOG
    whole, orders = path.read_bytes(), 0
    for at in range(0, len(whole), 3):
        data = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
        path.write_bytes(data)
        if not is_damaged(empty_log, Rejections):
            continue
        done = set_aside(empty_log, QUARANTINE_LOG)
        assert done is not None
        assert kept_of(empty_log) == [data]
        left = refused_of(empty_log)
        assert (len(left), set(left) <= set(numbers)) == (6, True)
        [told] = owed_of(empty_log)
        assert (told.kind, told.body) == (Kind.GAP, said_of(QUARANTINE_LOG, data, done.damaged_at, 6))
        require_documented(told.kind, told.body)
        shutil.rmtree(empty_log / LOST_AND_FOUND)
        orders += 1
    assert orders > 10


def test_what_was_owed_before_a_refused_file_is_set_aside_is_owed_on(empty_log: Path) -> None:
    sayings = owing(empty_log)
    refusing(empty_log)
    flip(empty_log / QUARANTINE_LOG, 20)
    set_aside(empty_log, QUARANTINE_LOG)
    *left, told = owed_of(empty_log)
    assert left == sayings[3:]
    assert told.body["file"] == QUARANTINE_LOG


def test_what_was_being_owed_when_the_power_went_is_kept_and_told_before_more_is_owed(
    empty_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sayings = owing(empty_log)
    refusing(empty_log)
    flip(empty_log / QUARANTINE_LOG, 20)
    with (empty_log / OWED_LOG).open("ab") as file:
        file.write(b"TMOW cut short")
    set_aside(empty_log, QUARANTINE_LOG)
    assert "owed.log ended in a write that was cut short" in capsys.readouterr().err
    assert b"TMOW cut short" in kept_of(empty_log)
    assert owed_of(empty_log)[:-1] == sayings[3:]


def test_of_two_damaged_files_the_one_in_which_it_is_to_be_said_comes_first(empty_log: Path) -> None:
    owing(empty_log)
    refusing(empty_log)
    for name in (OWED_LOG, QUARANTINE_LOG):
        flip(empty_log / name, 20)
    whole = (empty_log / QUARANTINE_LOG).read_bytes()
    with pytest.raises(LogDamaged, match=OWED_LOG):
        set_aside(empty_log, QUARANTINE_LOG)
    assert (empty_log / QUARANTINE_LOG).read_bytes() == whole
    set_aside(empty_log, OWED_LOG)
    set_aside(empty_log, QUARANTINE_LOG)
    assert [told.body.get("file") for told in owed_of(empty_log)[-2:]] == [OWED_LOG, QUARANTINE_LOG]


@pytest.mark.parametrize(
    "name",
    [
        f"{SEGMENTS}/00000000000000000000.seg",
        description.NAME,
        keyring.NAME,
        watermark.NAME,
        CHECKPOINT,
        CHECKPOINTS_LOG,
        "replication/promise",
        "../owed.log",
        f"./{OWED_LOG}",
        "",
    ],
)
def test_the_log_itself_and_what_it_has_promised_is_never_set_aside(two_segments: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in two_segments.rglob("*") if path.is_file()}
    with pytest.raises(FileNotSetAside):
        set_aside(two_segments, name)
    assert main([str(two_segments), name]) == 1
    assert {path: path.read_bytes() for path in two_segments.rglob("*") if path.is_file()} == before


def test_a_log_that_is_open_and_a_folder_without_one_are_refused(two_segments: Path, tmp_path: Path) -> None:
    owing(two_segments)
    flip(two_segments / OWED_LOG, 20)
    with open_store(two_segments), pytest.raises(LogLocked):
        set_aside(two_segments, OWED_LOG)
    with pytest.raises(LogMissing):
        set_aside(tmp_path, OWED_LOG)


def test_a_file_that_a_start_takes_stays_as_it_is(empty_log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(empty_log), OWED_LOG]) == 0
    owing(empty_log)
    assert main([str(empty_log), OWED_LOG]) == 0
    whole = (empty_log / OWED_LOG).read_bytes()
    (empty_log / OWED_LOG).write_bytes(whole[:-1])
    capsys.readouterr()
    assert main([str(empty_log), OWED_LOG, "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"status": 2, "set_aside": None}
    assert (empty_log / OWED_LOG).read_bytes() == whole[:-1]
    assert not kept_of(empty_log)


def test_the_operators_command_says_what_was_set_aside_and_fsck_is_content(
    two_segments: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    owing(two_segments)
    flip(two_segments / OWED_LOG, 20)
    assert check(two_segments, SMALL).file == OWED_LOG
    data = (two_segments / OWED_LOG).read_bytes()
    assert teemesh(["ledger", "set-aside", OWED_LOG, str(two_segments), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    [kept] = (two_segments / LOST_AND_FOUND).iterdir()
    assert told == {"status": 0, "set_aside": {**said_of(OWED_LOG, data, 0, 5), "kept_as": str(kept)}}
    assert check(two_segments, SMALL).verdict == "clean"
    assert teemesh(["ledger", "set-aside", OWED_LOG, str(two_segments)]) == 0
    assert "nothing was set aside" in capfd.readouterr().out
    assert teemesh(["ledger", "set-aside", "log.json", str(two_segments)]) == 1
    assert "FILE_NOT_SET_ASIDE" in capfd.readouterr().err


@pytest.mark.parametrize("kind", [disk.Kind.DEATH, disk.Kind.TORN, disk.Kind.ERROR])
@pytest.mark.parametrize("name", [OWED_LOG, QUARANTINE_LOG])
def test_whatever_step_it_ends_at_the_same_order_goes_on(empty_log: Path, name: str, kind: disk.Kind) -> None:
    sayings, numbers = owing(empty_log), refusing(empty_log)
    flip(empty_log / name, 20)
    # Forks are for a process without threads.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        steps, wrong = apart.submit(_end_at_each_step, empty_log, name, kind).result()
    assert not wrong
    assert steps > 8
    assert (len(sayings), len(numbers)) == (8, 7)


def _end_at_each_step(log: Path, name: str, kind: disk.Kind) -> tuple[int, list[str]]:
    """End at each of an order's steps, then give it again. Returns how many there are, and what was wrong."""
    damaged, wrong = (log / name).read_bytes(), []
    for step in count(1):
        folder = log.with_name(f"{step}")
        shutil.copytree(log, folder)
        status = _end(folder, name, disk.Trouble(kind, step, number=28))
        kept, is_as_it_was = kept_of(folder), (folder / name).read_bytes() == damaged
        if not is_as_it_was and damaged not in kept:
            wrong.append(f"step {step}: another file is in place, and the damaged one is nowhere")
        set_aside(folder, name)
        set_aside(folder, name)
        *left, told = owed_of(folder)
        if [each.body.get("file") for each in (*left, told)].count(name) != 1 or told.body.get("file") != name:
            wrong.append(f"step {step}: it is to be said {left}")
        if len(left) != 5 or len(refused_of(folder)) != (7 if name == OWED_LOG else 6):
            wrong.append(f"step {step}: {len(left)} are owed, and {refused_of(folder)} known as refused")
        if kept_of(folder) != [damaged]:
            wrong.append(f"step {step}: {len(kept_of(folder))} files are kept")
        if any(path.name.startswith(".") for path in folder.rglob("*")):
            wrong.append(f"step {step}: a draft is left")
        if status == 0:
            return step, wrong
    raise AssertionError("it never ends")


def _end(folder: Path, name: str, trouble: disk.Trouble) -> int:
    child = os.fork()
    if child == 0:
        disk.Disk(trouble, lambda met: None).install()
        status = 1
        try:
            status = main([str(folder), name])
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]
