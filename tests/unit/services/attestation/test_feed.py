"""Watching appraisals: in order, from where one was, and never at anybody else's cost."""

from __future__ import annotations

import asyncio

import pytest

from services.attestation.feed import Feed, Made, SequenceNotHeld, Told, WatcherTooSlow

START = 1_790_000_000_000


def made(number: int) -> Made:
    return Made(bytes([number]) * 32, bytes(32), "node", "", 1, number, None)


def feed(count: int, kept: int = 8) -> Feed:
    made_feed = Feed(START, kept)
    for number in range(1, count + 1):
        made_feed.publish(made(number))
    return made_feed


async def test_a_watcher_gets_what_follows_in_order() -> None:
    telling = feed(2)
    events = telling.follow(0)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    telling.publish(made(3))
    telling.publish(made(4))
    assert await waiting == Told(START + 3, made(3))
    assert await anext(events) == Told(START + 4, made(4))


async def test_a_watcher_goes_on_where_it_was() -> None:
    events = feed(5).follow(START + 2)
    assert [(await anext(events)).sequence for _ in range(3)] == [START + 3, START + 4, START + 5]


async def test_everything_that_is_held_can_be_had() -> None:
    events = feed(20, kept=8).follow(START + 12)
    assert await anext(events) == Told(START + 13, made(13))


@pytest.mark.parametrize("after", [1, START + 11, START + 21])
async def test_a_number_that_is_not_held_is_refused(after: int) -> None:
    with pytest.raises(SequenceNotHeld):
        await anext(feed(20, kept=8).follow(after))


async def test_a_number_of_an_earlier_process_is_refused() -> None:
    with pytest.raises(SequenceNotHeld):
        await anext(Feed(START + 60_000).follow(START + 3))


async def test_a_watcher_that_is_overtaken_is_told_so() -> None:
    telling = feed(1)
    events = telling.follow(START)
    await anext(events)
    for number in range(9):
        telling.publish(made(number))
    with pytest.raises(WatcherTooSlow):
        await anext(events)


async def test_a_watcher_hears_that_nothing_happened() -> None:
    telling = feed(2)
    events = telling.follow(0, heartbeat_seconds=0)
    assert await anext(events) == Told(START + 2, None)
    telling.publish(made(3))
    assert await anext(events) == Told(START + 3, made(3))
    assert await anext(events) == Told(START + 3, None)
