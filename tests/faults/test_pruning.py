"""Pruning, and putting back, may die before any step: the log is one that starts, whole or bare, with nothing lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from libs.audit.log.findings import Status
from libs.audit.log.reading import Question, read_log
from services.cli.ledger.files import LogFolder
from services.ledger.storage import segments
from services.ledger.storage.recovery import recover
from services.ledger.storage.segment_files import BARE, SEGMENTS
from tests.fakes.prunable_log import STOPPED, prunable_log
from tests.unit.services.ledger.conftest import read_whole

_MOST_STEPS = 60


def die(folder: Path, given: bytes, step: int, *options: str) -> int:
    command = [sys.executable, "-m", "tests.faults.dying", "ledger.pruning", str(folder), "--step", str(step)]
    return subprocess.run([*command, "--torn", *options], input=given, capture_output=True, check=False).returncode


def test_log_that_died_at_any_step_of_pruning_starts_and_is_pruned_in_the_end(tmp_path: Path) -> None:
    log = prunable_log(tmp_path / "log")
    whole = {path.name: path.read_bytes() for path in (log.folder / SEGMENTS).iterdir()}
    archive = json.dumps([{name: hashlib.sha256(data).hexdigest() for name, data in whole.items()}]).encode()
    for step in range(1, _MOST_STEPS):
        ended = die(log.folder, archive, step)
        found = read_whole(log.folder, STOPPED)
        assert found.scanned.head.size == 10
        assert read_log(LogFolder(log.folder), Question()).findings.worst is Status.SOUND
        for first, end in found.scanned.bare.items():
            assert end <= 8, first
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        recover(log.folder, found)
    assert ended == 0
    assert step > 10
    assert list(found.scanned.bare) == [0, 4]
    assert not [name for name in log.files() if name.endswith(".tmp")]


def test_log_that_died_at_any_step_of_putting_back_starts_and_is_whole_in_the_end(tmp_path: Path) -> None:
    log = prunable_log(tmp_path / "log")
    name = segments.file_name(0)
    whole = (log.folder / SEGMENTS / name).read_bytes()
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (log.folder / SEGMENTS).iterdir()}
    assert die(log.folder, json.dumps([files]).encode(), _MOST_STEPS) == 0
    found = set()
    for step in range(1, _MOST_STEPS):
        folder = shutil.copytree(log.folder, tmp_path / str(step))
        ended = die(folder, whole, step, "--put-back=0")
        examined = read_whole(folder, STOPPED)
        assert examined.scanned.head.size == 10
        assert read_log(LogFolder(folder), Question()).findings.worst is Status.SOUND
        recover(folder, examined)
        found.add((has_whole := (folder / SEGMENTS / name).exists(), has_bare := (folder / BARE / name).exists()))
        assert has_whole or has_bare
        # Whoever puts back again either still can, or is told that there is nothing to put back.
        assert die(folder, whole, _MOST_STEPS, "--put-back=0") == (0 if has_bare else 1)
        assert (folder / SEGMENTS / name).read_bytes() == whole
        assert list(read_whole(folder, STOPPED).scanned.bare) == [4]
        assert not list(folder.rglob("*.tmp"))
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert ended == 0
    assert found == {(False, True), (True, True), (True, False)}
