"""It is responsible for the wish to stop: SIGTERM from a supervisor, SIGINT from a terminal."""

from __future__ import annotations

import asyncio
import signal


async def until_terminated() -> None:
    """Wait for SIGTERM or SIGINT. From the first wait on, neither kills the process."""
    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminated.set)
    await terminated.wait()
