"""A line of those who wait to be read, while its thread is busy with somebody else's text."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from services.router.reading import LITTLE, Reading
from tests.fakes.routers import PATIENCE_SECONDS

Line = Callable[[str, int, float, Callable[[], Any]], Awaitable[Any]]


@contextmanager
def held_up(line: Line) -> Iterator[asyncio.Future[Any]]:
    """Keep the thread for what takes long busy meanwhile: `Reading.request`'s or `Reading.answer`'s. It is, when the
    loop runs again.
    """
    go_on = threading.Event()
    busy = asyncio.ensure_future(line("other", LITTLE + 1, PATIENCE_SECONDS, go_on.wait))
    try:
        yield busy
    finally:
        go_on.set()


async def until_an_answer_waits(reading: Reading) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not reading._answers._turns._waiting:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
