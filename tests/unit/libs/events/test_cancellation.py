"""Whoever is cancelled while it waits for NATS is cancelled, also when what it waits for comes at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from nats.aio.client import Client

from libs.events.cancellation import heed_cancellation, heeding_cancellation
from libs.events.connect import NatsLink
from libs.events.consume import StreamReader, read_stream
from libs.events.subjects import issuer_subject

ISSUER = b"\x11" * 32
STEPS = range(12)
"""How many turns of the event loop after a message's arrival a cancellation comes: it is with its reader after five."""


async def test_a_reader_that_is_cancelled_as_a_message_comes_ends(link: NatsLink) -> None:
    client = await link.client(10)

    async def read(reader: StreamReader) -> None:
        async for _ in reader.events():
            pass

    for steps in STEPS:
        async with read_stream(link, 1, after=steps, timeout=10) as reader:
            reading = await _waiting(partial(read, reader))
            await client.flush()
            await client.publish(issuer_subject(1, ISSUER), b"a message")
            await _cancel_after_message(client, reading, steps)


async def test_whoever_is_cancelled_as_its_answer_comes_ends(link: NatsLink) -> None:
    client = await link.client(10)

    async def ask() -> None:
        while True:
            await client.request("$JS.API.INFO", timeout=10)

    for steps in STEPS:
        await _cancel_after_message(client, await _waiting(ask), steps)


async def test_a_cancellation_that_is_lost_in_the_block_ends_it() -> None:
    async def lose() -> None:
        with heeding_cancellation():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError as error:
                raise OSError("taken for the end of the connection") from error

    losing = await _waiting(lose)
    losing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await losing


async def test_one_that_came_before_lets_the_block_clean_up_to_its_end() -> None:
    steps = []

    async def clean_up_after_cancellation() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            for step in range(2):
                with heeding_cancellation():
                    await asyncio.sleep(0)
                steps.append(step)

    cleaning = await _waiting(clean_up_after_cancellation)
    cleaning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cleaning
    assert steps == [0, 1]


async def test_an_error_of_cleaning_up_hides_no_cancellation() -> None:
    async def fail_to_clean_up() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            try:
                raise OSError("the connection is gone")
            finally:
                heed_cancellation()

    failing = await _waiting(fail_to_clean_up)
    failing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await failing


async def _waiting(work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
    """Return the task of this work, begun."""
    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    return task


async def _cancel_after_message(client: Client, task: asyncio.Task[None], steps: int) -> None:
    """Cancel so many turns of the event loop after a message has come in; the task must end of it."""
    seen = client.stats["in_msgs"]
    while client.stats["in_msgs"] == seen:  # noqa: ASYNC110 - an event would come some turns later
        await asyncio.sleep(0)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait([task])
    assert task.cancelled()
