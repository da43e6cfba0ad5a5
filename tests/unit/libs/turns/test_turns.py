"""Places are had in turn and never lost, wherever somebody who waits for one leaves."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from libs.turns import Turns

PATIENCE_SECONDS = 20.0


async def hold(turns: Turns, who: str, held: list[str]) -> None:
    """Take a place, and give it back at once."""
    async with turns.taken(who, PATIENCE_SECONDS):
        held.append(who)


async def test_those_who_wait_are_taken_in_turn_whoever_waits_more_often() -> None:
    turns, held = Turns(1), list[str]()
    async with asyncio.TaskGroup() as tasks, turns.taken("first", PATIENCE_SECONDS):
        for who in ("a", "a", "a", "b", "c", "c"):
            tasks.create_task(hold(turns, who, held))
        await asyncio.sleep(0)
    assert held == ["a", "b", "c", "a", "c", "a"]


@pytest.mark.parametrize("given", [False, True], ids=["while it waits", "as it is given the place"])
async def test_whoever_leaves_takes_no_place_along(given: bool) -> None:
    turns, held = Turns(1), list[str]()
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        async with AsyncExitStack() as first:
            await first.enter_async_context(turns.taken("first", PATIENCE_SECONDS))
            leaving = tasks.create_task(hold(turns, "leaving", held))
            tasks.create_task(hold(turns, "next", held))
            await asyncio.sleep(0)
            if given:
                await first.aclose()
            leaving.cancel()
        await asyncio.wait([leaving])
    await hold(turns, "last", held)
    assert held == ["next", "last"]


async def test_a_place_that_rests_is_nobodys_until_it_has() -> None:
    turns = Turns(1)
    async with turns.taken("first", PATIENCE_SECONDS) as turn:
        turn.rest_seconds = 3600.0
    with pytest.raises(TimeoutError):
        async with turns.taken("next", 0.0):
            pytest.fail("the place rests")


async def test_a_place_that_has_rested_is_the_next_ones() -> None:
    turns, held = Turns(1), list[str]()
    async with turns.taken("first", PATIENCE_SECONDS) as turn:
        turn.rest_seconds = 0.01
    await hold(turns, "next", held)
    assert held == ["next"]
