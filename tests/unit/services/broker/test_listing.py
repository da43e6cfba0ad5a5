"""Which keys are let in while a change of them is on its way."""

from __future__ import annotations

import asyncio

import pytest

from services.broker.listing import KeyNotAdmitted, Listing

FIRST, SECOND = frozenset({b"1" * 32}), frozenset({b"2" * 32})


class Disk:
    """Takes what is written, unless it is full: then it keeps either what it had or, all the same, what came."""

    def __init__(self) -> None:
        self.keys: frozenset[bytes] = frozenset()
        self.is_full = False
        self.fails_late = False

    def write(self, keys: frozenset[bytes]) -> None:
        if not self.is_full or self.fails_late:
            self.keys = keys
        if self.is_full:
            raise OSError("no space left on device")


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def listing(disk: Disk) -> Listing:
    listing = Listing(disk.write)
    listing.rewrite()
    return listing


def read(listing: Listing) -> None:
    listing.confirm(listing.begin_reading())


def test_the_same_keys_again_are_no_change(listing: Listing) -> None:
    listing.want(FIRST)
    read(listing)
    listing.want(FIRST)
    assert not listing.stale.is_set()


def test_what_could_not_be_written_is_written_at_the_next_call_without_a_change(disk: Disk, listing: Listing) -> None:
    listing.want(FIRST)
    read(listing)
    disk.is_full = True
    with pytest.raises(OSError, match="no space"):
        listing.want(frozenset())
    disk.is_full = False
    listing.want(frozenset())
    assert disk.keys == frozenset()
    assert listing.stale.is_set()


def test_a_list_that_came_to_disk_although_its_write_failed_does_not_stay_there(disk: Disk, listing: Listing) -> None:
    disk.is_full = disk.fails_late = True
    with pytest.raises(OSError, match="no space"):
        listing.want(FIRST)
    disk.is_full = False
    listing.want(frozenset())
    assert disk.keys == frozenset()


async def test_a_key_that_could_not_be_written_is_not_taken_for_read(disk: Disk, listing: Listing) -> None:
    disk.is_full = True
    with pytest.raises(OSError, match="no space"):
        listing.want(FIRST)
    with pytest.raises(OSError, match="no space"):
        read(listing)
    disk.is_full = False
    read(listing)
    assert disk.keys == FIRST
    await listing.until_read(*FIRST)


def test_a_key_that_is_listed_while_the_server_reads_is_tolerated(listing: Listing) -> None:
    listing.want(FIRST)
    reading = listing.begin_reading()
    listing.want(FIRST | SECOND)
    listing.confirm(reading)
    assert listing.tolerated == FIRST | SECOND
    assert listing.stale.is_set()


def test_a_key_that_is_taken_off_is_tolerated_until_the_server_has_read_that(listing: Listing) -> None:
    listing.want(FIRST)
    read(listing)
    listing.want(SECOND)
    assert listing.tolerated == FIRST | SECOND
    read(listing)
    assert listing.tolerated == SECOND


async def test_who_waits_for_a_key_that_is_taken_off_is_refused(listing: Listing) -> None:
    listing.want(FIRST)
    waiting = asyncio.ensure_future(listing.until_read(*FIRST))
    await asyncio.sleep(0)
    listing.want(frozenset())
    with pytest.raises(KeyNotAdmitted):
        await asyncio.wait_for(waiting, 5)


async def test_a_new_server_has_read_nothing_before_it_says_so(listing: Listing) -> None:
    listing.want(FIRST)
    read(listing)
    listing.forget()
    waiting = asyncio.ensure_future(listing.until_read(*FIRST))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert listing.stale.is_set()
    read(listing)
    await asyncio.wait_for(waiting, 5)
