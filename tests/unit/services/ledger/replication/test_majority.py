"""What counts: what a majority holds, once that is a frame of this very writer."""

from __future__ import annotations

import asyncio

from services.ledger.replication.frame_files import FrameEnd, FrameName
from services.ledger.replication.keyring_copy import KeyringCopy
from services.ledger.replication.majority import Majority


def end(offset: int) -> FrameEnd:
    return FrameEnd(0, offset, FrameName(offset, offset.to_bytes(32, "big")))


def test_the_majoritys_last_frame_counts() -> None:
    majority = Majority(["a", "b", "c", "d", "e"])
    majority.begin(end(1))
    for member, held in (("a", 9), ("b", 7), ("c", 5)):
        majority.holds(member, end(held))
    assert majority.committed == end(5)
    majority.holds("d", end(6))
    assert majority.committed == end(6)
    majority.holds("e", end(3))
    assert majority.committed == end(6)


def test_two_of_five_are_no_majority() -> None:
    majority = Majority(["a", "b", "c", "d", "e"])
    majority.begin(end(1))
    majority.holds("a", end(9))
    majority.holds("b", end(9))
    assert majority.committed is None


def test_an_earlier_writers_frame_counts_only_with_one_of_this_writer() -> None:
    """The frame is on a majority, and could still be replaced: by a writer of an epoch in between."""
    majority = Majority(["a", "b", "c"])
    majority.begin(end(5))
    majority.holds("a", end(5))
    majority.holds("b", end(4))
    majority.holds("c", end(4))
    assert majority.committed is None
    majority.holds("b", end(5))
    assert majority.committed == end(5)


def test_a_member_that_lost_its_disk_holds_nothing_any_more() -> None:
    majority = Majority(["a", "b", "c"])
    majority.begin(end(1))
    majority.holds("a", end(9))
    majority.holds("b", end(8))
    majority.holds("b", end(0))
    assert majority.committed is None


async def test_who_waits_is_told_as_soon_as_a_majority_has_it() -> None:
    majority = Majority(["a", "b", "c"])
    majority.begin(end(1))
    waiting = asyncio.create_task(majority.until_held(end(4)))
    for held in (("a", 4), ("c", 3), ("b", 2)):
        majority.holds(held[0], end(held[1]))
        await asyncio.sleep(0)
        assert not waiting.done()
    majority.holds("c", end(4))
    await waiting


async def test_a_keyring_counts_when_a_majority_has_it_or_a_later_one() -> None:
    majority = Majority(["a", "b", "c"])
    waiting = asyncio.create_task(majority.until_kept(KeyringCopy(2, 3, b"")))
    for member, version in (("a", (2, 3)), ("b", (1, 9)), ("c", (2, 2))):
        majority.has_keyring(member, version)
        await asyncio.sleep(0)
        assert not waiting.done()
    majority.has_keyring("b", (2, 4))
    await waiting


async def test_an_older_keyring_is_forgotten_when_the_last_member_has_a_later_one() -> None:
    majority = Majority(["a", "b", "c"])
    waiting = asyncio.create_task(majority.until_kept_by_all(KeyringCopy(2, 3, b"")))
    for member, version in (("a", (2, 3)), ("b", (2, 4)), ("c", (1, 9))):
        majority.has_keyring(member, version)
        await asyncio.sleep(0)
        assert not waiting.done()
    majority.has_keyring("c", (2, 3))
    await waiting
