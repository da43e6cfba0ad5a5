"""It is responsible for finding out that an engine hangs: a process that is there, and does not work.

It relies on what the engine gives anyway: one that was heard of since the last look is not asked. What a tenant's
requests alone can bring about, long waits among them, is no hanging.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from services.node.channel import EngineTooSlow, EngineUnavailable

_LOOKS = 3
"""How often the engine is looked at within the time that it may be silent."""
_LONGEST_PAUSE_SECONDS = 15.0
_ASKED = 2
"""A single question may have to wait behind requests that came with it; the next one then is another, or has room."""
_FAILURES = 3
"""After so many wrong answers in a row it does not work, however soon they come."""


class Signs(Protocol):
    """Where an engine is heard of."""

    @property
    def signs_of_life(self) -> int:
        """Grows with every one."""


async def until_hanging(
    signs: Signs,
    ask: Callable[[], Awaitable[None]],
    silent_seconds: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> str:
    """Return why an engine hangs, once it does: it was asked, and for `silent_seconds` nothing came of it at all, or it
    answers wrongly again and again.

    `ask` raises `EngineUnavailable` for a wrong answer and `EngineTooSlow` for a late one. An engine that has ended is
    for others to notice.
    """
    heard, silences, failures = signs.signs_of_life, 0, 0
    while True:
        await sleep(min(silent_seconds / _LOOKS, _LONGEST_PAUSE_SECONDS))
        if signs.signs_of_life == heard:
            try:
                async with asyncio.timeout(silent_seconds / _ASKED):
                    await ask()
                silences = failures = 0
            except (TimeoutError, EngineTooSlow):
                silences += 1
            except EngineUnavailable as error:
                failures += 1
                if failures >= _FAILURES:
                    return str(error)
        if signs.signs_of_life != heard:
            heard, silences, failures = signs.signs_of_life, 0, 0
        elif silences >= _ASKED:
            return f"silent for {silent_seconds:g} s"
