"""It is responsible for telling those who wait how far the log is durable."""

from __future__ import annotations

import asyncio


class Growth:
    """The durable size and its root. For use on the event loop alone."""

    def __init__(self, size: int, root: bytes) -> None:
        self.size = size
        self.root = root
        self._grown = asyncio.Event()

    def reach(self, size: int, root: bytes) -> None:
        self.size, self.root = size, root
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def beyond(self, size: int) -> None:
        """Wait until the log has more than `size` leaves."""
        while self.size <= size:
            await self._grown.wait()
