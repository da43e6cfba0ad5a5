"""It is responsible for requests that are nobody's: how many were refused before a tenant was known, publicly logged.

They get no receipt, and anybody can make as many as they like: so they become one entry an hour, by reason, and none in
an hour without any.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from libs.transparency.leaf import Kind
from services.router.admission.hourly import Hourly, Log

_NOBODYS = ""


@dataclass(slots=True)
class _Tally:
    """What was refused since the last entry."""

    since: int
    counts: Counter[str] = field(default_factory=Counter)

    def body(self, until: int) -> dict[str, Any]:
        return {"from": self.since, "until": until, "counts": dict(self.counts)}

    def add(self, other: _Tally) -> None:
        self.since = min(self.since, other.since)
        self.counts.update(other.counts)


class Refusals:
    """The count since the last entry."""

    def __init__(
        self,
        log: Log,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._hourly = Hourly(log, Kind.REFUSALS, _Tally, _open, clock=clock, pause=pause)

    def count(self, reason: str) -> None:
        """One more was refused. Reasons MUST be the router's own: each is a member of a public entry."""
        self._hourly.of(_NOBODYS).counts[reason] += 1

    def recording(self) -> AbstractAsyncContextManager[None]:
        """Log the count every hour while the body runs, and the rest at its end."""
        return self._hourly.recording()


async def _open(whose: str) -> None:
    """Nobody's vault seals it."""
