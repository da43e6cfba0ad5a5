"""Reading what is sealed again: damage that no start meets ends the ledger, and the next start names it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from services.ledger.storage import derived, segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.pages import PageDamaged
from services.ledger.storage.scrubbing import Scrubber
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.store import LogStore

from .conftest import DESCRIPTION, SOURCE, candidate, open_store, sequencer

SECOND = segments.file_name(4)


class Pauses:
    """Takes no time, and sums up how much it should have been."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def __call__(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def log(empty_log: Path) -> Path:
    """Two sealed segments and a growing one."""
    with open_store(empty_log) as store:
        writer = sequencer(store)
        for number in range(1, 11):
            writer.append([candidate(number)], SOURCE, number, number)
    return empty_log


def scrubber(store: LogStore, pauses: Pauses) -> Scrubber:
    return Scrubber(store, 0.5, pauses)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << at % 8
    path.write_bytes(data)


async def test_whole_log_is_read_at_the_rate_given(log: Path) -> None:
    pauses = Pauses()
    with open_store(log) as store:
        assert await scrubber(store, pauses).scrub() == 2
    sizes = [(log / SEGMENTS / segments.file_name(first)).stat().st_size for first in (0, 4)]
    assert pauses.seconds == pytest.approx((sum(sizes) - 2 * segments.FOOTER_SIZE) / 0.5e6)


async def test_flipped_bit_anywhere_in_a_sealed_segment_is_found_and_the_next_start_names_it(log: Path) -> None:
    path = log / SEGMENTS / SECOND
    size = path.stat().st_size
    for at in (*range(0, size, 37), size - 1):
        with open_store(log) as store:
            flip(path, at)
            with pytest.raises(LogDamaged, match=SECOND) as found:
                await scrubber(store, Pauses()).scrub()
            assert found.value.exit_status == 3
        with pytest.raises(LogDamaged, match=SECOND):
            open_store(log)
        flip(path, at)


async def test_segment_of_another_history_in_its_place_is_found(log: Path) -> None:
    other = log.with_name("other")
    LogStore.create(other, DESCRIPTION)
    with open_store(other) as store:
        sequencer(store).append([candidate(number) for number in range(21, 31)], SOURCE, 1, 1)
    with open_store(log) as store:
        shutil.copyfile(other / SEGMENTS / SECOND, log / SEGMENTS / SECOND)
        with pytest.raises(LogDamaged, match=SECOND):
            await scrubber(store, Pauses()).scrub()


@pytest.mark.parametrize("cut", [0, 100, segments.HEADER_SIZE + 50])
async def test_segment_that_was_cut_or_removed_is_found(log: Path, cut: int) -> None:
    path = log / SEGMENTS / SECOND
    with open_store(log) as store:
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(LogDamaged, match=SECOND):
            await scrubber(store, Pauses()).scrub()
        path.unlink()
        with pytest.raises(LogDamaged, match=SECOND):
            await scrubber(store, Pauses()).scrub()


async def test_flipped_bit_anywhere_in_a_derived_file_is_found_and_the_file_made_anew(log: Path) -> None:
    path = log / derived.FOLDER / derived.file_name(4)
    true = path.read_bytes()
    for at in range(0, len(true), 41):
        with open_store(log) as store:
            flip(path, at)
            with pytest.raises(PageDamaged):
                await scrubber(store, Pauses()).scrub()
        with open_store(log) as store:
            assert await scrubber(store, Pauses()).scrub() == 2
        assert path.read_bytes() == true


async def test_derived_file_that_was_removed_is_found(log: Path) -> None:
    with open_store(log) as store:
        (log / derived.FOLDER / derived.file_name(0)).unlink()
        with pytest.raises(PageDamaged):
            await scrubber(store, Pauses()).scrub()
