"""It is responsible for vendor collateral: fetched once per platform, kept while it is valid, never waited for twice.

What is held and valid is served at once, whatever the PCCS does; it is renewed beside that. Collateral is signed by the
vendor, so a wrong or stale answer from the PCCS can only make evidence fail. How old it may be is policy's word, and
the verifier's to judge; what is held is never exchanged for what is older. That holds for a platform's first few roots
and for as long as this process runs: who answers for the PCCS may make up roots, and none of them is to keep the
vendor's own statements out, or to make them forgotten.

Anybody may ask, and a quote names whichever platform its maker likes. Platforms of which nothing is held therefore
share a few fetches among them, and leave those that are held alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from libs.tee import tdx
from libs.tee.collateral import Collateral
from services.attestation.pccs import Ages, CollateralUnavailable, Pccs, Platform, goes_back
from services.attestation.shelf import Shelf

_MAX_PLATFORMS = 256
_STRANGERS_AT_ONCE = 32
"""So many fetches run for platforms of which nothing is held."""

_MAX_STRANGERS = 1024
"""So many of them are waited for."""

_MAX_ROOTS = 8
"""So many of a platform's roots are remembered. There is one vendor; the others are made up."""

_REFRESH_AFTER_SECONDS = 3600
"""Policy may bound collateral's age far below its validity, so it is renewed long before its end."""

_FIRST_BACKOFF_SECONDS = 2.0
_LAST_BACKOFF_SECONDS = 300.0
_KEEP_SECONDS = 15.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Held:
    """Collateral and how long it can be used (Unix seconds)."""

    collateral: Collateral
    valid_until: float
    fetched_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Newest:
    """The newest statements seen under a root, and when they end (Unix seconds)."""

    ages: Ages
    valid_until: float


@dataclass(slots=True)
class _Flight:
    """One fetch and those who wait for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last of some failures in a row. Until `again_at` it is repeated, so that a broken PCCS is not stormed."""

    count: int
    at: float
    again_at: float
    why: str


class CollateralCache:
    """Collateral by platform."""

    def __init__(
        self,
        pccs_url: str,
        timeout_seconds: float,
        clock: Callable[[], float] = time.time,
        *,
        root_crl_url: str = "",
        shelf: Shelf | None = None,
    ) -> None:
        self._pccs = Pccs(pccs_url, timeout_seconds, root_crl_url)
        self._clock = clock
        self._shelf = shelf
        self._held: dict[Platform, Held] = {}
        # How new the newest statements under each root are, by root in the order in which they were first seen.
        self._newest: dict[Platform, dict[bytes, _Newest]] = {}
        self._failures: dict[Platform, _Failure] = {}
        self._flights: dict[Platform, _Flight] = {}
        self._strangers = asyncio.Semaphore(_STRANGERS_AT_ONCE)
        self._jitter = random.SystemRandom()

    async def load(self) -> None:
        """Begin with what an earlier process kept."""
        if self._shelf is not None:
            for platform, collateral in (await self._shelf.load(self._clock())).items():
                self._hold(platform, Held(collateral, collateral.expires_at()))

    async def collateral(self, quote: bytes) -> Collateral:
        """Return the collateral of a quote's platform. Raises `QuoteMalformed` or `CollateralUnavailable`."""
        return (await self.held(quote)).collateral

    async def held(self, quote: bytes) -> Held:
        """The same with its validity. Only where nothing valid is held does anybody wait for the PCCS."""
        platform = Platform.of(tdx.cut(quote))
        if (held := self._valid(platform)) is not None:
            return held
        if platform in self._held:
            async with self._alone(platform):
                return self._valid(platform) or await self._refresh(platform)
        self._repeat_failure(platform)
        if platform not in self._flights and len(self._flights) >= _MAX_STRANGERS:
            raise CollateralUnavailable("too many platforms are asked for at once")
        async with self._alone(platform), self._strangers:
            return self._valid(platform) or await self._refresh(platform)

    async def keep(self) -> None:
        """Renew what is held, for ever."""
        while True:
            await self.renew()
            await asyncio.sleep(_KEEP_SECONDS)

    async def renew(self) -> None:
        """Renew, once, what is due. A failure leaves what is held to serve until its end."""
        now = self._clock()
        for platform, held in list(self._held.items()):
            if held.valid_until <= now:
                self._held.pop(platform, None)
            elif abs(now - held.fetched_at) >= _REFRESH_AFTER_SECONDS:
                try:
                    async with self._alone(platform):
                        await self._refresh(platform)
                except CollateralUnavailable as error:
                    log.warning("collateral is not renewed", fmspc=platform.fmspc, detail=str(error))

    async def _refresh(self, platform: Platform) -> Held:
        self._repeat_failure(platform)
        try:
            collateral = await self._pccs.collateral(platform, self._clock())
            self._require_no_older(platform, collateral)
        except CollateralUnavailable as error:
            self._fail(platform, str(error))
            raise
        self._failures.pop(platform, None)
        held = Held(collateral, collateral.expires_at(), self._clock())
        self._hold(platform, held)
        log.info("collateral fetched", fmspc=platform.fmspc, valid_until=int(held.valid_until))
        if self._shelf is not None:
            await self._shelf.put(platform, collateral)
        return held

    def _require_no_older(self, platform: Platform, offered: Collateral) -> None:
        ages = Ages.of(offered)
        newest = self._newest.get(platform, {}).get(ages.root_sha256)
        if newest is None or newest.valid_until <= self._clock():
            return
        if (older := goes_back(ages, newest.ages)) is not None:
            raise CollateralUnavailable(f"the PCCS offers an older {older} than the newest seen")

    def _hold(self, platform: Platform, held: Held) -> None:
        self._held.pop(platform, None)
        self._held[platform] = held
        if len(self._held) > _MAX_PLATFORMS:
            del self._held[next(iter(self._held))]
        self._remember(platform, _Newest(Ages.of(held.collateral), held.valid_until))

    def _remember(self, platform: Platform, newest: _Newest) -> None:
        # This outlives what is held: a made-up root whose statements end at once must not make the vendor's forgotten.
        roots = self._newest.pop(platform, {})
        self._newest[platform] = roots
        roots[newest.ages.root_sha256] = newest
        if len(roots) > _MAX_ROOTS:
            # Those that were seen first stay: whoever makes roots up has any number of them.
            del roots[list(roots)[-2]]
        if len(self._newest) > _MAX_PLATFORMS:
            del self._newest[next(iter(self._newest))]

    @asynccontextmanager
    async def _alone(self, platform: Platform) -> AsyncIterator[None]:
        """Fetch for a platform one at a time, and leave nothing behind for platforms that nobody waits for."""
        flight = self._flights.setdefault(platform, _Flight())
        flight.waiting += 1
        try:
            async with flight.lock:
                yield
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                del self._flights[platform]

    def _valid(self, platform: Platform) -> Held | None:
        held = self._held.get(platform)
        return held if held is not None and held.valid_until > self._clock() else None

    def _fail(self, platform: Platform, why: str) -> None:
        now = self._clock()
        earlier = self._failures.pop(platform, None)
        count = 1 if earlier is None else earlier.count + 1
        longest = min(_FIRST_BACKOFF_SECONDS * 2 ** min(count - 1, 16), _LAST_BACKOFF_SECONDS)
        # Services that lost the PCCS at once must not all come back at once.
        wait = longest * self._jitter.uniform(0.5, 1)
        self._failures[platform] = _Failure(count, now, now + wait, why)
        strangers = [each for each in self._failures if each not in self._held]
        if len(strangers) > _MAX_PLATFORMS:
            del self._failures[strangers[0]]

    def _repeat_failure(self, platform: Platform) -> None:
        failure = self._failures.get(platform)
        # A clock that was set back must not make a failure last.
        if failure is not None and failure.at <= self._clock() < failure.again_at:
            raise CollateralUnavailable(failure.why)
