"""The log as frames: found by name, read in order over all its files, whatever has no leaf included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.ledger.replication.frame_files import LOG_START, FrameName
from services.ledger.storage import frames, segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.segment_files import SEGMENTS

from .members import Writer, writer_at


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    """Ten entries in three files, with frames in between that move the position alone."""
    with writer_at(tmp_path / "log") as made:
        made.write([], [1], [2, 3, 4], [], [], [5], [6, 7, 8], [9], [10], [])
        yield made


def test_every_frame_comes_in_order_over_all_files(writer: Writer) -> None:
    at, sizes = writer.at(LOG_START), []
    while at.name != writer.end.name:
        following = writer.files.following(at)
        assert following > at
        at = following
        sizes.append(at.name.size)
    assert sizes == [0, 1, 4, 4, 4, 5, 8, 9, 10, 10]
    assert len(os.listdir(writer.store.directory / SEGMENTS)) == 3


def test_every_frame_is_found_by_its_name_and_no_other(writer: Writer) -> None:
    at = writer.at(LOG_START)
    while at.name != writer.end.name:
        at = writer.files.following(at)
        assert writer.files.find(at.name, writer.end) == at
        for size in range(12):
            other = FrameName(size, at.name.hash)
            assert (writer.files.find(other, writer.end) is None) == (size != at.name.size)
    assert writer.files.find(FrameName(4, bytes(32)), writer.end) is None


def test_reading_ends_at_a_frame_and_goes_on_there(writer: Writer) -> None:
    at, read = writer.at(LOG_START), b""
    while at.name != writer.end.name:
        data, at = writer.files.read(at, writer.end, 1000)
        assert len(data) <= 1000 or frames.parse_header(data).length == len(data)
        read += data
    assert read == writer.after()
    assert writer.files.read(at, writer.end, 1000) == (b"", at)


def test_the_last_frames_are_named_newest_first(writer: Writer) -> None:
    names = writer.files.backwards(writer.end, 4, 100)
    assert [name.size for name in names] == [10, 10, 9, 8, 5, 4, 4, 4]
    assert all(writer.files.find(name, writer.end) is not None for name in names)
    assert [name.size for name in writer.files.backwards(writer.end, 0, 3)] == [10, 10, 9, 0]
    assert writer.files.backwards(writer.end, 0, 100)[-1] == LOG_START


def test_the_log_at_a_frames_end_is_what_the_frame_says(writer: Writer) -> None:
    tip = writer.files.tip(writer.end)
    head = writer.store.head
    assert (tip.epoch, tip.chain, tip.root) == (head.epoch, head.chain, head.root())
    start = writer.files.tip(writer.at(LOG_START))
    assert (start.epoch, start.root) == (0, writer.store.index.tree.root(0))


def test_a_changed_byte_of_a_frame_is_found_by_reading_it_again(writer: Writer) -> None:
    start, end = writer.at(LOG_START), writer.first
    end = writer.files.following(writer.files.following(end))
    writer.files.require_whole(start, writer.end)
    path = writer.store.directory / SEGMENTS / segments.file_name(0)
    data = path.read_bytes()
    for at in range(start.offset, end.offset, 5):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(LogDamaged):
            writer.files.require_whole(start, writer.end)
