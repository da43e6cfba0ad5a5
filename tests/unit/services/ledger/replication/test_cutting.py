"""A tail that nobody else had is taken back: what is left verifies as a whole log, whenever the process dies."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from services.ledger.replication.cutting import START_ANEW, cut, cut_and_end
from services.ledger.replication.frame_files import LOG_START, FrameEnd, Tip
from services.ledger.storage.lost_and_found import LOST_AND_FOUND
from services.ledger.storage.segment_files import SEGMENTS
from tests.faults.dying import Death, counting
from tests.unit.services.ledger.conftest import open_store

from .members import Writer, writer_at

_STEPS = ("pwrite", "write", "fsync", "fdatasync", "replace", "unlink", "ftruncate", "mkdir")
_FRAMES: list[list[int]] = [[1], [2, 3, 4], [], [5], [6, 7, 8], [9], [10]]


def ends_of(writer: Writer) -> list[FrameEnd]:
    ends = [writer.at(LOG_START)]
    while ends[-1].name != writer.end.name:
        ends.append(writer.files.following(ends[-1]))
    return ends


@pytest.mark.parametrize("kept", range(len(_FRAMES)))
def test_a_log_cut_at_any_frame_is_the_log_of_the_frames_before(tmp_path: Path, kept: int) -> None:
    with writer_at(tmp_path / "log") as writer:
        writer.write(*_FRAMES)
        end = ends_of(writer)[kept]
        tip, tail = writer.files.tip(end), writer.files.read(end, writer.end, 1 << 30)[0]
    cut(tmp_path / "log", end, tip)
    with writer_at(tmp_path / "whole") as whole:
        whole.write(*_FRAMES[:kept])
        expected = (whole.store.head.size, whole.store.head.root(), whole.store.head.frame_hash)
    with open_store(tmp_path / "log") as store:
        assert (store.head.size, store.head.root(), store.head.frame_hash) == expected
        assert store.report.floor == end.name.size
        again = Writer(store, epoch=2)
        again.write([77])
        assert store.head.size == end.name.size + 1
    saved = b"".join(path.read_bytes() for path in (tmp_path / "log" / LOST_AND_FOUND).iterdir())
    assert tail[:300] in saved


def test_a_log_that_is_cut_half_is_still_a_whole_log(tmp_path: Path) -> None:
    """It dies before each of the steps that change a file, in a process of its own."""
    with writer_at(tmp_path / "log") as writer:
        writer.write(*_FRAMES)
        ends = ends_of(writer)
        tip = writer.files.tip(ends[1])
    sizes, died, step = [end.name.size for end in ends], -signal.SIGKILL, 0
    while died != START_ANEW:
        step += 1
        shutil.copytree(tmp_path / "log", directory := tmp_path / str(step))
        died = _die_cutting(directory, ends[1], tip, step)
        with open_store(directory) as store:
            assert store.head.size in sizes[1:]
    assert step > 10
    with open_store(directory) as store:
        assert (store.head.size, len(os.listdir(directory / SEGMENTS))) == (1, 1)


def _die_cutting(directory: Path, end: FrameEnd, tip: Tip, step: int) -> int:
    """Cut in a process of its own, which dies before that step; return its exit status."""
    child = os.fork()
    if child == 0:
        death = Death(step, torn=False, armed=True)
        for name in _STEPS:
            setattr(os, name, counting(death, name, getattr(os, name)))
        cut_and_end(directory, end, tip)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
