"""Pruning may die before any of its steps, and the log is one that starts, whole or bare, with nothing lost."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

from libs.audit.log.findings import Status
from libs.audit.log.reading import Question, read_log
from services.cli.ledger.files import LogFolder
from services.ledger.storage.recovery import recover
from services.ledger.storage.segment_files import SEGMENTS
from tests.fakes.prunable_log import STOPPED, prunable_log
from tests.fakes.written_log import WrittenLog
from tests.unit.services.ledger.conftest import read_whole

_MOST_STEPS = 60


def die(log: WrittenLog, archive: bytes, step: int) -> int:
    command = [sys.executable, "-m", "tests.faults.dying", "ledger.pruning", str(log.folder), "--step", str(step)]
    return subprocess.run([*command, "--torn"], input=archive, capture_output=True, check=False).returncode


def test_log_that_died_at_any_step_of_pruning_starts_and_is_pruned_in_the_end(tmp_path: Path) -> None:
    log = prunable_log(tmp_path / "log")
    whole = {path.name: path.read_bytes() for path in (log.folder / SEGMENTS).iterdir()}
    archive = json.dumps([{name: hashlib.sha256(data).hexdigest() for name, data in whole.items()}]).encode()
    for step in range(1, _MOST_STEPS):
        ended = die(log, archive, step)
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
