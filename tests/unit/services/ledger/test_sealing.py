"""Segments that are sealed: passed over by the next start, and still nothing that changes goes unnoticed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from libs.transparency.chain import batch_hash
from services.ledger.storage import derived, frames, segments
from services.ledger.storage.damage import LogBroken, LogDamaged
from services.ledger.storage.segment_files import SEGMENTS
from tests.fakes.unsynced_disk import writes_without_sync

from .conftest import SMALL, SOURCE, candidate, fill, open_store, read_whole, sequencer

STOPS = replace(SMALL, segment_leaves=100, sealed_at_stop=1)
FIRST = segments.file_name(0)


def append(directory: Path, *frame: int, **more: Sequence[int]) -> None:
    """Start, append a frame, or several, and stop."""
    with open_store(directory, STOPS) as store:
        writer = sequencer(store)
        for numbers in (frame, *more.values()):
            position = store.head.source_high + 1
            writer.append([candidate(number) for number in numbers], SOURCE, position, position)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << at % 8
    path.write_bytes(data)


def test_clean_stop_seals_and_the_next_start_reads_no_segment(empty_log: Path) -> None:
    append(empty_log, 1, 2, 3)
    with open_store(empty_log, STOPS) as store:
        assert (store.report.segments, store.report.segments_read) == (1, 0)
        assert (store.head.size, store.head.source, store.head.source_high) == (3, SOURCE, 1)
        sequencer(store).append([candidate(4)], SOURCE, 2, 2)
        assert [stored.row.body for stored in store.reader.entries(0, 9)] == [candidate(n).body for n in range(1, 5)]


def test_small_last_segment_is_not_sealed_at_a_stop(empty_log: Path) -> None:
    few = replace(STOPS, sealed_at_stop=2)
    with open_store(empty_log, few) as store:
        sequencer(store).append([candidate(1)], SOURCE, 1, 1)
    with open_store(empty_log, few) as store:
        assert (store.report.segments, store.report.segments_read) == (1, 1)


def test_stop_before_the_log_says_whose_key_it_is_seals_nothing(empty_log: Path) -> None:
    with open_store(empty_log, STOPS) as store:
        store.seals_at_stop = False
        sequencer(store).append([candidate(1)], SOURCE, 1, 1)
    with open_store(empty_log, STOPS) as store:
        assert (store.report.segments, store.report.segments_read) == (1, 1)


def test_stop_by_an_error_seals_nothing(empty_log: Path) -> None:
    def breaking() -> None:
        with open_store(empty_log, STOPS) as store:
            writer = sequencer(store)
            writer.append([candidate(1)], SOURCE, 1, 1)
            with writes_without_sync(empty_log / SEGMENTS / FIRST):
                writer.append([candidate(2)], SOURCE, 2, 2)

    with pytest.raises(LogBroken):
        breaking()
    with open_store(empty_log, STOPS) as store:
        assert store.report.segments_read == 1


def test_segments_of_any_length_are_one_log(empty_log: Path) -> None:
    number = 1
    for length in (1, 2, 3, 4, 5, 9):
        append(empty_log, *range(number, number + length))
        number += length
    with open_store(empty_log, STOPS) as store:
        assert (store.report.segments, store.report.segments_read) == (6, 0)
        root = store.head.root()
        assert store.index.tree.root() == root
    assert read_whole(empty_log, STOPS).scanned.head.root() == root
    with (empty_log / SEGMENTS / segments.file_name(15)).open("rb") as file:
        file.seek(-segments.FOOTER_SIZE, os.SEEK_END)
        footer = segments.Footer.parse(file.read())
    # Leaves 15 to 23 hold the blocks of four that begin at 16 and at 20.
    assert (footer.first, footer.count, len(footer.blocks)) == (15, 9, 2)


def test_flipped_bit_in_what_a_start_goes_by_is_damage_at_once(empty_log: Path) -> None:
    append(empty_log, 1, 2)
    append(empty_log, 3)
    path = empty_log / SEGMENTS / FIRST
    size = path.stat().st_size
    last_frame = path.read_bytes().index(b"TMF1")
    rows_end = last_frame + 160 + 2 * 152
    for at in (*range(0, segments.HEADER_SIZE, 61), *range(last_frame, rows_end, 3), *range(size - 1024, size, 7)):
        flip(path, at)
        with pytest.raises(LogDamaged) as damage:
            open_store(empty_log, STOPS)
        assert damage.value.file == FIRST
        flip(path, at)


def test_segment_of_another_history_with_its_derived_file_is_damage(empty_log: Path) -> None:
    other = empty_log.with_name("other")
    shutil.copytree(empty_log, other)
    append(empty_log, 1, 2)
    append(empty_log, 3)
    append(other, 5, 6)
    name = derived.file_name(0)
    shutil.copyfile(other / SEGMENTS / FIRST, empty_log / SEGMENTS / FIRST)
    shutil.copyfile(other / derived.FOLDER / name, empty_log / derived.FOLDER / name)
    second = segments.file_name(2)
    with pytest.raises(LogDamaged, match=f"{second} is damaged at byte 8: the segment's header does not continue"):
        open_store(empty_log, STOPS)


def test_body_that_changed_in_a_sealed_segment_is_refused_when_it_is_read(empty_log: Path) -> None:
    append(empty_log, 1, 2)
    path = empty_log / SEGMENTS / FIRST
    at = path.read_bytes().index(candidate(2).body)
    flip(path, at)
    with open_store(empty_log, STOPS) as store:
        assert store.reader.entry(0).row.body == candidate(1).body
        with pytest.raises(LogDamaged, match=f"{FIRST} is damaged at byte {at}"):
            store.reader.entry(1)
        with pytest.raises(LogDamaged):
            list(store.reader.entries(0, 2))


def make_anew(path: Path, what: str) -> None:
    """Change the first frame of a segment, and every hash in it that covers what was changed."""
    data = bytearray(path.read_bytes())
    start, row = segments.HEADER_SIZE, segments.HEADER_SIZE + frames.HEADER_SIZE
    end, rows_end = start + int.from_bytes(data[start + 4 : start + 8], "big"), row + frames.ROW_SIZE
    match what:
        case "time":
            data[start + 79] ^= 1
            data[start + 152 : row] = sha256(data[start : start + 152]).digest()[:8]
        case "tag":
            data[row + 48] ^= 1
        case "month":
            data[row + 99] ^= 1
        case "vault":
            data[row + 104] ^= 1
        case "public body":
            other = candidate(1, body=b"salt and entry 9")
            data[rows_end : rows_end + len(other.body)] = other.body
            data[row + 120 : rows_end] = other.commitment
    rest = data[end - 112 : end - 80], data[end - 80 : end - 48]
    data[end - 48 : end - 16] = batch_hash(bytes(data[start:row]), bytes(data[row:rows_end]), *map(bytes, rest))
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["tag", "public body", "time", "month", "vault"])
def test_frame_that_was_made_anew_with_its_own_hash_is_refused(empty_log: Path, what: str) -> None:
    """A start passes over it: what names a frame is the one after it, which a reader of the frame does not read."""
    append(empty_log, 1, then=[2])
    make_anew(empty_log / SEGMENTS / FIRST, what)
    with open_store(empty_log, STOPS) as store:
        with pytest.raises(LogDamaged, match="the frame from entry 0 on is another than was committed"):
            store.reader.entry(0)
        with pytest.raises(LogDamaged, match=r"another than was committed|changed|says other than its leaf"):
            list(store.reader.entries(0, 2))
        with pytest.raises(LogDamaged, match=r"another than was committed|changed|says other than its leaf"):
            store.reader.whole(store.index.place(0), 1 << 20)


def test_public_entry_that_its_leaf_does_not_commit_to_is_refused(empty_log: Path) -> None:
    """Nothing names the newest frame but itself, and the tree holds no more of it than its leaves."""
    fill(empty_log, [[1]])
    make_anew(empty_log / SEGMENTS / FIRST, "public body")
    with open_store(empty_log) as store:
        with pytest.raises(LogDamaged, match="entry 0 says other than its leaf"):
            store.reader.entry(0)
        with pytest.raises(LogDamaged, match="entry 0 says other than its leaf"):
            list(store.reader.entries(0, 1))


class _Death:
    """Ends the process before one of its writes; torn, after half of it."""

    def __init__(self, step: int, torn: bool) -> None:
        self._left, self._torn = step, torn

    def counting(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                if self._torn and real.__name__ == "pwrite":
                    descriptor, data, offset = arguments
                    real(descriptor, bytes(data)[: len(data) // 2], offset)
                os._exit(9)
            return real(*arguments, **options)

        return call


def _dies(directory: Path, step: int, torn: bool) -> bool:
    """Open, append and stop in a process of its own that ends before its nth write. False where it has fewer."""
    child = os.fork()
    if child == 0:
        death = _Death(step, torn)
        for name in ("pwrite", "fsync", "fdatasync", "ftruncate", "rename", "replace", "unlink"):
            setattr(os, name, death.counting(getattr(os, name)))
        try:
            append(directory, 3, 4)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("torn", [False, True])
def test_kill_at_any_write_of_a_start_a_commit_and_a_sealing_stop_loses_nothing(empty_log: Path, torn: bool) -> None:
    append(empty_log, 1, 2)
    whole = empty_log.with_name("whole")
    shutil.copytree(empty_log, whole)
    append(whole, 3, 4)
    files = {path.name: path.read_bytes() for path in (whole / derived.FOLDER).iterdir()}
    step = 1
    while True:
        copy = empty_log.with_name(f"copy-{step}")
        shutil.copytree(empty_log, copy)
        if not _dies(copy, step, torn):
            break
        with open_store(copy, STOPS) as store:
            size = store.head.size
            assert size in (2, 4)
        if size == 2:
            append(copy, 3, 4)
        assert read_whole(copy, STOPS).scanned.head.size == 4
        assert {path.name: path.stat().st_size for path in (copy / derived.FOLDER).iterdir()} == {
            name: len(data) for name, data in files.items()
        }
        with open_store(copy, STOPS) as store:
            assert store.report.segments - store.report.segments_read == 2
            assert [stored.row.body for stored in store.reader.entries(0, 9)] == [
                candidate(n).body for n in range(1, 5)
            ]
        step += 1
    assert step > 10
