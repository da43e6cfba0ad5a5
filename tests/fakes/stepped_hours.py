"""Time that passes only when a test says so, for what waits an hour between its turns."""

from __future__ import annotations

import asyncio


class SteppedHours:
    """A clock, and the pause of whoever waits by it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self._passed = asyncio.Semaphore(0)
        self._waits = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        self._waits.set()
        await self._passed.acquire()
        self.now += seconds

    async def passes(self) -> None:
        """An hour passes, and what is due then is done."""
        await self._waits.wait()
        self._waits.clear()
        self._passed.release()
        await self._waits.wait()
