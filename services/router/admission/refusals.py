"""It is responsible for requests that are nobody's: how many were refused before a tenant was known, publicly logged.

They get no receipt, and anybody can make as many as they like: so they become one entry an hour, by reason, and none in
an hour without any.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn, Protocol

import structlog

from libs.events.outbox import OutboxFull
from libs.transparency.leaf import Kind

PERIOD_SECONDS = 3600.0

log = structlog.get_logger()


class Log(Protocol):
    """What of a publisher is needed."""

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: None) -> object:
        """Return when the entry is durable here. Raises `OutboxFull`."""
        ...


class Refusals:
    """The count since the last entry. What is counted is lost if the process is killed."""

    def __init__(
        self,
        log: Log,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._log = log
        self._clock = clock
        self._pause = pause
        self._counts: Counter[str] = Counter()
        self._since = int(clock())

    def count(self, reason: str) -> None:
        """One more was refused. Reasons MUST be the router's own: each is a member of a public entry."""
        self._counts[reason] += 1

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Log the count every hour while the body runs, and the rest at its end."""
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep())
            try:
                yield
            finally:
                keeping.cancel()
                await self._record()

    async def _keep(self) -> NoReturn:
        while True:
            await self._pause(PERIOD_SECONDS)
            await self._record()

    async def _record(self) -> None:
        counts, since, until = self._counts, self._since, int(self._clock())
        self._counts, self._since = Counter(), until
        if not counts:
            return
        try:
            await self._log.enqueue(Kind.REFUSALS, {"from": since, "until": until, "counts": dict(counts)}, vault=None)
        except OutboxFull:
            # With the next hour's.
            self._counts.update(counts)
            self._since = since
            log.error("refused requests are not logged yet", since=since, counts=dict(counts))
