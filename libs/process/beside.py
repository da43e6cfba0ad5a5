"""Responsible for two contexts that end beside each other: neither's end waits for the other's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

F = TypeVar("F")
S = TypeVar("S")
V = TypeVar("V")


@asynccontextmanager
async def beside(
    first: AbstractAsyncContextManager[F], second: AbstractAsyncContextManager[S]
) -> AsyncIterator[tuple[F, S]]:
    """Enter one after the other, and leave both at once; yields what they give. Each has a task of its own.

    What either raises comes in an `ExceptionGroup`.
    """
    over = asyncio.Event()

    async def hold(context: AbstractAsyncContextManager[V], entered: asyncio.Future[V]) -> None:
        async with context as given:
            entered.set_result(given)
            await over.wait()

    loop = asyncio.get_running_loop()
    of_first: asyncio.Future[F] = loop.create_future()
    of_second: asyncio.Future[S] = loop.create_future()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(first, of_first))
        # One that cannot be entered ends the group, and with it this waiting.
        given_first = await of_first
        tasks.create_task(hold(second, of_second))
        given_second = await of_second
        try:
            yield given_first, given_second
        finally:
            over.set()
