"""What happens when a write has failed: nothing more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_BREAK = """
from services.ledger.storage.breaking import ending_when_broken
from services.ledger.storage.damage import LogBroken

with ending_when_broken():
    raise LogBroken("no space left")
print("went on")
"""


def test_process_ends_at_once_and_says_why() -> None:
    ended = _run(subprocess.PIPE)
    assert (ended.returncode, ended.stdout) == (70, b"")
    assert b"LOG_BROKEN: no space left" in ended.stderr


def test_process_ends_at_once_though_its_last_words_find_no_room_either() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = _run(full)
    assert (ended.returncode, ended.stdout) == (70, b"")


def _run(stderr: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", _BREAK], stdout=subprocess.PIPE, stderr=stderr, check=False)  # type: ignore[call-overload, no-any-return]
