"""It is responsible for one thing at a time: what a member answers never rests on something that changes meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.ledger.storage.breaking import ending_when_broken

T = TypeVar("T")


class Turns:
    """Whose turn it is, and the thread that writes the log."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._turn = asyncio.Lock()

    async def take(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do one thing at a time, each to its end, also when whoever asked has given up: what is on disk is known."""

        async def turn() -> T:
            async with self._turn:
                return await work()

        return await asyncio.shield(turn())

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what writes; the process ends where it cannot."""

        def guarded() -> T:
            with ending_when_broken():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)
