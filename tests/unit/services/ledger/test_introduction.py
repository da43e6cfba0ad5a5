"""How a ledger gets into its own log: by whoever writes it, and known there before it counts as introduced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

from libs.events.acknowledgements import Received, Refused
from services.ledger.growth import Growth
from services.ledger.intake.introduction import Answering, until_introduced

from .conftest import SOURCE, candidate, open_store, sequencer


class Writer:
    """A ledger that answers what it is told to."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[Refused] = asyncio.Queue()
        self.followers = 0
        self.asked = asyncio.Event()

    async def follow(self, issuer: bytes, from_seq: Callable[[], int]) -> AsyncIterator[Received | Refused]:
        self.followers += 1
        self.asked.set()
        try:
            while True:
                yield await self.told.get()
        finally:
            self.followers -= 1


async def test_another_member_answers_until_this_one_writes() -> None:
    other, own = Writer(), Writer()
    answering = Answering(other)
    answers = answering.follow(b"issuer", lambda: 1)
    other.told.put_nowait(Refused(1, "by another"))
    async with asyncio.timeout(20):
        assert await anext(answers) == Refused(1, "by another")
        coming = asyncio.ensure_future(anext(answers))
        await asyncio.sleep(0)
        answering.begin(own)
        own.told.put_nowait(Refused(2, "by itself"))
        assert await coming == Refused(2, "by itself")
        assert (other.followers, own.followers) == (0, 1)
        other.told.put_nowait(Refused(3, "too late"))
        own.told.put_nowait(Refused(4, "by itself"))
        assert await anext(answers) == Refused(4, "by itself")


async def test_alone_a_ledger_is_answered_as_soon_as_it_writes() -> None:
    own = Writer()
    answering = Answering(None)
    answers = answering.follow(b"issuer", lambda: 1)
    own.told.put_nowait(Refused(1, "by itself"))
    async with asyncio.timeout(20):
        coming = asyncio.ensure_future(anext(answers))
        await asyncio.sleep(0)
        assert not coming.done()
        answering.begin(own)
        assert await coming == Refused(1, "by itself")


async def test_who_gives_up_leaves_nobody_asking() -> None:
    other = Writer()
    answers = Answering(other).follow(b"issuer", lambda: 1)
    coming = asyncio.ensure_future(anext(answers))
    await other.asked.wait()
    coming.cancel()
    with suppress(asyncio.CancelledError):
        await coming
    assert other.followers == 0


async def test_a_keyset_that_may_still_be_taken_back_introduces_nobody(empty_log: Path) -> None:
    with open_store(empty_log) as store:
        growth = Growth(0, store.head.root(), is_all=lambda: False)
        commit = sequencer(store).append([candidate(1)], SOURCE, 1, 1)[-1]
        waiting = asyncio.ensure_future(until_introduced(candidate(1).issuer, store.index, growth))
        another = asyncio.ensure_future(until_introduced(b"\x05" * 32, store.index, growth))
        await asyncio.sleep(0)
        assert not waiting.done()
        growth.reach(commit.size, commit.root)
        async with asyncio.timeout(20):
            await waiting
        assert not another.done()
        another.cancel()
