"""It is responsible for the next keyset: born before the last one ends, served once the log holds it.

Make before break: whatever is away, the keyset of now is served until its end, and nothing after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn, Protocol

import structlog

from libs.errors import MeshError
from services.router.workload.generation import Generation
from services.router.workload.reports import Reports
from services.router.workload.workload import Workload

_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 60.0
_LOOK_SECONDS = 30.0
"""How often the clock is looked at: the host may put it on."""
_OVERDUE_SECONDS = 60.0
_AWAITED = "KEYSET_AWAITED"
"""Nothing refused it: the ledger has not answered yet."""
RENEWED = "renewed"

log = structlog.get_logger()


class Introducing(Protocol):
    """Shows a keyset to the log: see `services.router.workload.introduction`."""

    async def introduce(
        self, newest: Generation, earlier: Sequence[Generation], report: bytes, *, timeout: float
    ) -> None: ...


class Renewal:
    """Renews a workload's keyset. `told` is told how each try ended: `RENEWED`, or a reason."""

    def __init__(
        self,
        workload: Workload,
        reports: Reports,
        introduction: Introducing,
        overlap_seconds: int,
        told: Callable[[str], None],
    ) -> None:
        self._workload = workload
        self._reports = reports
        self._introduction = introduction
        self._overlap_seconds = overlap_seconds
        self._told = told
        self._renewed = asyncio.Event()
        self._born: Generation | None = None
        """The next one, while it is not in the log."""
        self._refused: str | None = None

    @property
    def overdue(self) -> str | None:
        """Why the keyset is not renewed although it should be by now; None while all is well."""
        if self.due_in() > -_OVERDUE_SECONDS:
            return None
        return self._refused or _AWAITED

    async def keep(self) -> NoReturn:
        """Renew for as long as the process lives."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            if (rest := self.due_in()) > 0:
                await asyncio.sleep(min(rest, _LOOK_SECONDS))
            elif await self.renew():
                delay = _FIRST_RETRY_SECONDS
            else:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LAST_RETRY_SECONDS)

    async def watch(self, serves: Callable[[bool], None]) -> NoReturn:
        """Drop keysets when they end, and tell `serves` whenever it has changed whether there is one to serve under. A
        renewal may be waiting meanwhile.
        """
        served = True
        while True:
            held = self._workload.held()
            if served != bool(held):
                served = bool(held)
                serves(served)
            ends = [generation.not_after - self._workload.now() for generation in held]
            self._renewed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min([*ends, _LOOK_SECONDS])):
                    await self._renewed.wait()

    def due_in(self) -> float:
        """Return in how many seconds the next keyset is due: negative once it is."""
        return self._workload.newest.not_after - self._overlap_seconds - self._workload.now()

    async def renew(self) -> bool:
        """Try once; say whether the next keyset is served now."""
        try:
            await self._renew()
        except MeshError as error:
            self._refused = error.reason
            self._told(error.reason)
            left = self._workload.newest.not_after - self._workload.now()
            log.error("keyset not renewed", reason=error.reason, detail=str(error), ends_in_seconds=int(left))
            return False
        self._refused = None
        self._told(RENEWED)
        self._renewed.set()
        return True

    async def _renew(self) -> None:
        following = self._following()
        report = await self._reports.unchallenged(following)
        await self._introduction.introduce(following, self._workload.held(), report, timeout=self._patience(following))
        self._workload.serve(following)
        self._born = None
        log.info("keyset renewed", digest=following.digest, until=following.not_after)

    def _following(self) -> Generation:
        """The keyset that was born for this renewal, or another if waiting has used up that one's time."""
        if self._born is None or self._patience(self._born) <= 0:
            self._born = self._workload.bear()
        return self._born

    def _patience(self, generation: Generation) -> float:
        """How long its introduction may take: an entry that waits in the outbox need not be made twice, but one that
        comes when the next is due already is of no use.
        """
        return generation.not_after - self._overlap_seconds - self._workload.now()
