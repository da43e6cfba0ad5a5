"""Frames and footers that agree with themselves and not with the log: what only its writer could have made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from libs.audit.log.findings import Status
from libs.transparency.leaf import Kind
from services.ledger.storage import frames, segments
from services.ledger.storage.frames import Frame, Row
from services.ledger.storage.segments import Geometry
from tests.fakes.written_log import WrittenLog, sealed_segment

from .conftest import read, said

FIRST = "seg/00000000000000000000.seg"


@pytest.fixture
def log(log: WrittenLog) -> WrittenLog:
    log.seconds = 10
    return log.append([log.ledger.introduce()], [log.ledger.start()], [log.ledger.start()])


def with_frame(log: WrittenLog, number: int, change: Callable[[Frame], Frame]) -> dict[str, bytes]:
    """Return the files with one frame made again, every hash in it right."""
    files = {**log.files(), "wm": b""}
    data, start = files[FIRST], 4096
    for _ in range(number):
        start += int.from_bytes(data[start + 4 : start + 8], "big")
    header = frames.parse_header(data[start : start + 160])
    new = change(frames.parse(header, data[start : start + header.length]))
    made, _ = frames.encode(new.header, new.rows, new.chain_after, new.root_after)
    return {**files, FIRST: data[:start] + made + data[start + header.length :]}


def header(**changes: object) -> Callable[[Frame], Frame]:
    return lambda frame: replace(frame, header=replace(frame.header, **changes))  # type: ignore[arg-type]


def row(**changes: object) -> Callable[[Frame], Frame]:
    return lambda frame: replace(frame, rows=(replace(frame.rows[0], **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (header(first=3), "does not continue the log at leaf 2"),
        (header(previous=bytes(32)), "does not continue the log at leaf 2"),
        (header(epoch=0), "the frame's epoch or time goes back"),
        (header(wall_ns=1), "the frame's epoch or time goes back"),
        (header(durable=3), "states as durable what was not written"),
        (header(source_low=9, source_high=9), "stream position 9 does not follow 2"),
        (header(source_low=3, source_high=1), "3 to 1 is no range of stream sequences"),
        (lambda frame: replace(frame, chain_after=bytes(32)), "the hash chain is another"),
        (lambda frame: replace(frame, root_after=bytes(32)), "the root is another"),
        (lambda frame: replace(frame, rows=_renamed(frame.rows)), "the hash chain is another"),
        (lambda frame: replace(frame, rows=_renamed(frame.rows, kind=14)), "row 0 is of an unknown kind"),
        (lambda frame: replace(frame, rows=_renamed(frame.rows, reserved=1)), "row 0 has no leaf of version 1"),
        (lambda frame: replace(frame, rows=_renamed(frame.rows, magic=b"TML2")), "row 0 has no leaf of version 1"),
        (lambda frame: replace(frame, rows=_renamed(frame.rows, number=0)), "a row has the number 0"),
        (row(vault_epoch=1), "kind, vault and month do not belong together"),
        (row(vault_id=b"\x01" * 16), "kind, vault and month do not belong together"),
    ],
)
def test_last_frame_that_does_not_continue_the_log_is_damage(
    log: WrittenLog, change: Callable[[Frame], Frame], why: str
) -> None:
    reading = read(with_frame(log, 2, change))
    assert (reading.findings.worst, reading.size) == (Status.DAMAGED, 2)
    assert why in said(reading)


def test_time_that_was_changed_afterwards_is_found(log: WrittenLog) -> None:
    reading = read(with_frame(log, 1, lambda frame: header(wall_ns=frame.header.wall_ns + 1)(frame)))
    # The changed frame may be as it is; the next one names another.
    assert "the frame does not continue the log at leaf 2" in said(reading)


def test_frame_across_a_blocks_end_is_damage(tmp_path: Path) -> None:
    log = WrittenLog(tmp_path / "wide", geometry=Geometry(zeros_ahead=60)).create()
    log.append([log.ledger.introduce()], [log.ledger.start() for _ in range(4)])
    assert "the frame crosses a block's end" in said(read(log.files()))


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 1},
        {"first": 1},
        {"count": 3},
        {"length": 5000},
        {"content_hash": bytes(32)},
        {"chain": bytes(32)},
        {"root": bytes(32)},
        {"frame_hash": bytes(32)},
        {"blocks": (bytes(32),)},
        {"blocks": ()},
    ],
)
def test_footer_that_says_something_else_of_its_segment_is_damage(tmp_path: Path, changes: dict[str, object]) -> None:
    log = sealed_segment(tmp_path / "log")
    files = log.files()
    content = files[FIRST]
    footer = replace(segments.Footer.parse(content[-1024:]), **changes)  # type: ignore[arg-type]
    sealed = segments.sign_footer(footer, log.ledger.ack_key.sign)
    alone = {"log.json": files["log.json"], FIRST: content[:-1024] + sealed}
    reading = read(alone)
    assert reading.findings.worst is Status.DAMAGED
    assert "the segment's footer does not match its frames" in said(reading)


def test_seal_by_another_key_is_not_proven(tmp_path: Path) -> None:
    log = sealed_segment(tmp_path / "log")
    files = log.files()
    footer = segments.Footer.parse(files[FIRST][-1024:])
    alone = {"log.json": files["log.json"], FIRST: files[FIRST][:-1024]}
    assert "sealed" not in said(read({**alone, FIRST: files[FIRST]}))
    forged = segments.sign_footer(footer, log.router.ack_key.sign)
    reading = read({**alone, FIRST: alone[FIRST] + forged})
    assert (reading.findings.worst, reading.size) == (Status.UNPROVEN, 4)
    assert "no ledger that the log knows has sealed the segment" in said(reading)


def test_damage_in_the_last_frame_of_a_sealed_segment_is_no_torn_write(tmp_path: Path) -> None:
    files = sealed_segment(tmp_path / "log").files()
    data = bytearray(files[FIRST])
    data[-1024 - 20] ^= 1
    alone = {"log.json": files["log.json"], FIRST: bytes(data)}
    assert read(alone).findings.worst is Status.DAMAGED


def test_footer_whose_file_was_not_cut_yet_is_a_torn_write(tmp_path: Path) -> None:
    files = sealed_segment(tmp_path / "log").files()
    alone = {"log.json": files["log.json"], FIRST: files[FIRST] + bytes(100)}
    assert read(alone).findings.has(Status.TORN)
    assert read({**alone, "seg/00000000000000000004.seg": files[FIRST]}).findings.worst is Status.DAMAGED


def _renamed(
    rows: tuple[Row, ...], *, kind: int = Kind.GAP, reserved: int = 0, magic: bytes = b"TML1", number: int = 9
) -> tuple[Row, ...]:
    leaf = bytearray(rows[0].leaf_data)
    leaf[:4], leaf[4], leaf[6], leaf[8:16] = magic, kind, reserved, number.to_bytes(8, "big")
    return (replace(rows[0], leaf_data=bytes(leaf)),)
