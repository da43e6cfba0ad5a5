"""It is responsible for what a child writes: passed on to this process's standard error, until it is hushed.

It is read to its end all the same, so that the child is never kept waiting by a pipe that is full.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

_LAST_WORDS_SECONDS = 1.0
"""For what is still in the pipe of a child that ended; what it started may have outlived it, holding the other end."""


class Relay(asyncio.Protocol):
    """One child's output. Made by `opened`."""

    def __init__(self) -> None:
        self._passes = True
        self._ended = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def opened(cls) -> AsyncIterator[tuple[Self, int]]:
        """Give a relay and the descriptor that the child is to write to, which is closed here at the block's end."""
        reading, writing = os.pipe()
        try:
            relay = cls()
            await asyncio.get_running_loop().connect_read_pipe(lambda: relay, os.fdopen(reading, "rb", 0))
            try:
                yield relay, writing
            except BaseException:
                relay._transport.close()
                raise
        finally:
            os.close(writing)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._passes:
            # Where nobody reads this process's words, the child is no worse off.
            with suppress(OSError):
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended.set()

    def hush(self) -> None:
        """Pass on nothing more, not even what was written before and not read yet."""
        self._passes = False

    async def close(self) -> None:
        """Read what is left of a child that ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._ended.wait()
        self._transport.close()
