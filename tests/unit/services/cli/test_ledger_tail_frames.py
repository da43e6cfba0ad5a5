"""`teemesh ledger tail` given whole frames: the same lines, and no frame passes that does not continue the log."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from teemesh.ledger.v1 import ledger_pb2

from libs.errors import MeshError
from libs.events.whole_frames import FramesUnordered, entries_of
from libs.transparency.leaf import Kind
from services.cli.ledger.command import Tail, read_ledger_access
from services.ledger.storage.frames import HEADER_SIZE, ROW_SIZE, Row, parse, parse_header
from services.ledger.storage.head import Head
from tests.fakes.ledger_log import ORIGIN, LedgerLog

from .test_ledger_tail import log

__all__ = ["log"]

Forging = Callable[[list[bytes]], list[bytes]]


async def _tail(state: Path, from_index: int | None = None) -> list[str]:
    text = io.StringIO()
    tail = Tail(read_ledger_access(state), Console(file=text, width=200), from_index=from_index, as_json=False)
    try:
        await tail.read(follow=False)
    except MeshError as error:
        assert not text.getvalue(), "something was printed that does not follow"
        raise error
    return text.getvalue().splitlines()


async def test_frames_give_the_lines_that_entries_give(log: LedgerLog, tmp_path: Path) -> None:
    expected = await _tail(tmp_path, from_index=0)
    log.frame_entries = 2
    assert await _tail(tmp_path, from_index=0) == expected


async def test_a_reading_goes_on_inside_a_frame(log: LedgerLog, tmp_path: Path) -> None:
    await _tail(tmp_path)
    log.append(Kind.ADMISSION, {"n": 4})
    log.append(Kind.ADMISSION, {"n": 5})
    log.frame_entries = 2
    assert [line.split()[0] for line in await _tail(tmp_path)] == ["3", "4"]


def _made_anew(frames: list[bytes], change: Callable[[list[Row]], list[Row]]) -> list[bytes]:
    """The first frame with other rows, and every hash of its own for them."""
    rows = change(list(parse(parse_header(frames[0]), frames[0]).rows))
    data, _, _ = Head(ORIGIN).build(rows, epoch=1, source=b"\x51" * 16, source_low=1, source_high=1, wall_ns=7)
    return [data, *frames[1:]]


def _rewritten(frames: list[bytes]) -> list[bytes]:
    def change(rows: list[Row]) -> list[Row]:
        other = rows[0].leaf_data[:-1] + bytes([rows[0].leaf_data[-1] ^ 1])
        return [replace(rows[0], leaf_data=other), *rows[1:]]

    return _made_anew(frames, change)


def _shorter(frames: list[bytes]) -> list[bytes]:
    return _made_anew(frames, lambda rows: rows[:-1])


FORGERIES: dict[str, tuple[Forging, str]] = {
    "a rewritten entry": (_rewritten, "LOG_DIVERGED"),
    "a frame without its last row": (_shorter, "TAIL_FRAMES_UNORDERED"),
    "only a frame without its last row": (lambda frames: _shorter(frames)[:1], "TAIL_FRAME_BROKEN"),
    "a frame left out": (lambda frames: frames[1:], "TAIL_FRAMES_UNORDERED"),
    "a frame twice": (lambda frames: [frames[0], *frames], "TAIL_FRAMES_UNORDERED"),
    "frames the wrong way round": (lambda frames: frames[::-1], "TAIL_FRAMES_UNORDERED"),
    "the last frame kept back": (lambda frames: frames[:1], "TAIL_FRAME_BROKEN"),
    "a torn frame at the end": (lambda frames: [frames[0], frames[1][:-1]], "TAIL_FRAME_BROKEN"),
    "a frame with more behind it": (lambda frames: [frames[0] + b"\0", frames[1]], "TAIL_FRAME_BROKEN"),
    "nothing of a frame": (lambda frames: [b"", *frames], "TAIL_FRAME_BROKEN"),
}


@pytest.mark.parametrize(("forging", "reason"), FORGERIES.values(), ids=FORGERIES)
async def test_forged_frames_are_refused(log: LedgerLog, tmp_path: Path, forging: Forging, reason: str) -> None:
    log.frame_entries, log.forged = 2, forging
    with pytest.raises(MeshError) as refused:
        await _tail(tmp_path)
    assert refused.value.reason == reason


async def test_frames_of_another_log_are_refused(log: LedgerLog, tmp_path: Path) -> None:
    """As long, and whole: but its chain begins with another name."""
    log.frame_entries = 2
    log.forged = lambda _: log.frames("other.example/ledger/1")
    with pytest.raises(MeshError) as refused:
        await _tail(tmp_path)
    assert refused.value.reason == "TAIL_FRAME_BROKEN"


async def test_a_head_that_its_rows_do_not_lead_to_is_refused(log: LedgerLog, tmp_path: Path) -> None:
    """The message states the forged frames' own head, so that the chain alone can tell."""
    log.frame_entries, log.states_its_frames_head = 2, True
    log.forged = lambda _: log.frames("other.example/ledger/1")
    with pytest.raises(MeshError) as refused:
        await _tail(tmp_path)
    assert refused.value.reason == "LOG_DIVERGED"


@pytest.mark.parametrize(
    "at", [8, 16, HEADER_SIZE + 4, HEADER_SIZE + 64, HEADER_SIZE + 120, HEADER_SIZE + 2 * ROW_SIZE]
)
async def test_a_changed_byte_is_refused(log: LedgerLog, tmp_path: Path, at: int) -> None:
    log.frame_entries = 2
    log.forged = lambda frames: [frames[0][:at] + bytes([frames[0][at] ^ 1]) + frames[0][at + 1 :], *frames[1:]]
    with pytest.raises(MeshError) as refused:
        await _tail(tmp_path)
    assert refused.value.reason == "TAIL_FRAME_BROKEN"


async def test_entries_beside_frames_are_refused(log: LedgerLog) -> None:
    log.frame_entries = 2
    message = ledger_pb2.TailResponse(frames=log.frames(), entries=log.entries[:1], chain_after=log.head(3))
    with pytest.raises(FramesUnordered, match="beside"):
        entries_of(message, 0)
