"""It is responsible for taking back what this member holds beyond what the writer's log and its own have in common.

Nothing that is signed, or known to be held by a majority, is ever taken back. What is cut lies in `lost+found`. The
process ends right after it and is started anew: everything that it has in memory rests on the files as they were.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from libs.files import fsync_dir
from services.ledger.replication.frame_files import FrameEnd, Tip
from services.ledger.storage import lost_and_found, segments, watermark
from services.ledger.storage.damage import LogBroken, StoredLogError
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.watermark import Watermark

START_ANEW = 75
"""Exit status of a member that is to be started again at once: nothing is wrong with its log."""


class LogDiverged(StoredLogError):
    """The writer's log is not the one that this member was told a majority holds. Ask the operators: do not repair."""

    reason = "LOG_DIVERGED"
    exit_status = 4


def cut_and_end(directory: Path, end: FrameEnd, tip: Tip) -> NoReturn:
    """Cut the log at the end of a frame, durably, and end the process. For the thread that writes."""
    try:
        cut(directory, end, tip)
    except LogBroken as error:
        os.write(sys.stderr.fileno(), f"ledger: {error.reason}: {error}\n".encode())
        os._exit(LogBroken.exit_status)
    os.write(sys.stderr.fileno(), f"ledger: TAIL_TAKEN_BACK: the log ends at leaf {end.name.size} again\n".encode())
    os._exit(START_ANEW)


def cut(directory: Path, end: FrameEnd, tip: Tip) -> None:
    """Cut the log at the end of a frame. Raises `LogBroken`.

    Killed at any step, the log is whole: longer than it will be, and never shorter than its watermark.
    """
    try:
        _lower_watermark(directory, end, tip)
        folder = directory / SEGMENTS
        for name in sorted(os.listdir(folder), reverse=True):
            if name.endswith(segments.SUFFIX) and int(name.removesuffix(segments.SUFFIX)) > end.segment:
                lost_and_found.keep(directory, folder / name, segments.HEADER_SIZE)
                os.unlink(folder / name)
                fsync_dir(folder)
        path = folder / segments.file_name(end.segment)
        lost_and_found.keep(directory, path, end.offset)
        _truncate(path, end.offset)
    except OSError as error:
        raise LogBroken(f"the log could not be cut: {error.strerror}") from error


def _lower_watermark(directory: Path, end: FrameEnd, tip: Tip) -> None:
    """Say first that less is promised: no majority counts on the rest."""
    path = directory / watermark.NAME
    mark = Watermark(path, watermark.read(path).newest)
    try:
        mark.raise_to(end.name.size, tip.epoch, tip.chain, tip.root)
        mark.sync()
    finally:
        mark.close()


def _truncate(path: Path, end: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
