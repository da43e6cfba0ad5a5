"""The runner reports what libFuzzer says, and takes a run without an end for a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import Outcome
from tests.fuzz.driver import CORPUS, FINDINGS

_LOG = """\
#2	INITED cov: 20 ft: 21 corp: 1/9b exec/s: 0 rss: 40Mb
peak: 1024 bytes for 9 bytes of input
#1424	NEW    cov: 31 ft: 45 corp: 12/44Kb lim: 4096 exec/s: 0 rss: 40Mb L: 2/2 MS: 1 Custom-
peak: 2048 bytes for 30 bytes of input
"""
_DONE = """\
#200000	DONE   cov: 31 ft: 45 corp: 12/44Kb lim: 4096 exec/s: 100000 rss: 40Mb
Done 200000 runs in 2 second(s)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in (CORPUS, FINDINGS):
        (tmp_path / part).mkdir()
    return tmp_path


def test_the_last_state_of_a_run_is_reported(folder: Path) -> None:
    assert Outcome.of(_LOG + _DONE, folder) == Outcome(200_000, 2, 31, 45, 12, 2048, ())


def test_a_run_that_did_not_end_counts_for_nothing(folder: Path) -> None:
    assert Outcome.of(_LOG, folder).executions == 0
    assert Outcome.of("", folder) == Outcome(0, 0, 0, 0, 0, 0, ())


def test_inputs_that_broke_a_parser_are_named(folder: Path) -> None:
    crash = folder / FINDINGS / "crash-1"
    crash.write_bytes(b"x")
    assert Outcome.of(_LOG, folder).findings == (crash,)
