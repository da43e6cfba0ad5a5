"""Waiting for what another process does: nothing tells this one, so it asks again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

POLL_SECONDS = 0.1


async def until(holds: Callable[[], Awaitable[bool]], poll_seconds: float = POLL_SECONDS) -> None:
    """Ask until it holds. Callers bound the time."""
    while not await holds():  # noqa: ASYNC110 - it is another process that changes
        await asyncio.sleep(poll_seconds)
