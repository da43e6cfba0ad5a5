"""It is responsible for vendor collateral: fetched once per platform, kept while it is valid, never waited for twice.

Collateral is signed by the vendor, so a wrong or stale answer from the PCCS can only make evidence fail.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import dcap_qvl
import structlog

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import tdx
from libs.tee.collateral import Collateral

_MAX_PLATFORMS = 256
_REFRESH_BEFORE_SECONDS = 6 * 3600
_FAILURE_SECONDS = 2.0
"""For this long after a failed fetch the failure is repeated, so that a broken PCCS is not stormed."""

log = structlog.get_logger()


class CollateralUnavailable(MeshError):
    """The PCCS cannot be reached, or does not know the platform."""

    code = Code.UNAVAILABLE
    reason = "COLLATERAL_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Held:
    """Collateral and how long it can be used (Unix seconds)."""

    collateral: Collateral
    valid_until: float


@dataclass(slots=True)
class _Flight:
    """One fetch and those who wait for it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class CollateralCache:
    """Collateral by platform (FMSPC)."""

    def __init__(self, pccs_url: str, timeout_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self._pccs_url = pccs_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._held: dict[str, Held] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._flights: dict[str, _Flight] = {}

    async def collateral(self, quote: bytes) -> Collateral:
        """Return the collateral of a quote's platform. Raises `QuoteMalformed` or `CollateralUnavailable`."""
        return (await self.held(quote)).collateral

    async def held(self, quote: bytes) -> Held:
        """The same with its validity. What is about to end is fetched anew, and used to its end if that fails."""
        quote = tdx.cut(quote)
        fmspc = _fmspc(quote)
        if (held := self._valid(fmspc, _REFRESH_BEFORE_SECONDS)) is not None:
            return held
        async with self._alone(fmspc):
            if (held := self._valid(fmspc, _REFRESH_BEFORE_SECONDS)) is not None:
                return held
            try:
                self._repeat_failure(fmspc)
                return await self._refresh(fmspc, quote)
            except CollateralUnavailable:
                if (held := self._valid(fmspc, 0)) is None:
                    raise
                return held

    async def _refresh(self, fmspc: str, quote: bytes) -> Held:
        try:
            held = await self._fetch(quote)
        except CollateralUnavailable as error:
            self._failed[fmspc] = (self._clock(), str(error))
            raise
        self._held[fmspc] = held
        log.info("collateral fetched", fmspc=fmspc, valid_until=int(held.valid_until))
        return held

    @asynccontextmanager
    async def _alone(self, fmspc: str) -> AsyncIterator[None]:
        """Fetch for a platform one at a time, and leave nothing behind for platforms that nobody waits for."""
        if len(self._flights) >= _MAX_PLATFORMS and fmspc not in self._flights:
            raise CollateralUnavailable("too many platforms are asked for at once")
        flight = self._flights.setdefault(fmspc, _Flight())
        flight.waiting += 1
        try:
            async with flight.lock:
                yield
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                del self._flights[fmspc]

    def _valid(self, fmspc: str, for_seconds: float) -> Held | None:
        held = self._held.get(fmspc)
        return held if held is not None and held.valid_until - for_seconds > self._clock() else None

    def _repeat_failure(self, fmspc: str) -> None:
        now = self._clock()
        # A clock that was set back must not make a failure last.
        recent = {name: failure for name, failure in self._failed.items() if abs(now - failure[0]) < _FAILURE_SECONDS}
        self._failed = recent
        if fmspc in self._failed:
            raise CollateralUnavailable(self._failed[fmspc][1])

    async def _fetch(self, quote: bytes) -> Held:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                fetched = await dcap_qvl.get_collateral(self._pccs_url, quote)
            return _read(fetched)
        except (OSError, ValueError, RuntimeError, TimeoutError, MeshError) as error:
            raise CollateralUnavailable(f"the PCCS at {self._pccs_url} gave no usable collateral: {error}") from error


def _read(fetched: dcap_qvl.QuoteCollateralV3) -> Held:
    """Raises `CollateralMalformed` or `JsonMalformed`."""
    # A tenth member, the PCK chain, would stand in for the one inside the quote; evidence does not carry it.
    members = jcs.loads_object(fetched.to_json().encode())
    members.pop("pck_certificate_chain", None)
    collateral = Collateral.parse(members)
    return Held(collateral, collateral.expires_at())


def _fmspc(quote: bytes) -> str:
    try:
        parsed = dcap_qvl.parse_quote(quote)
        return str(parsed.fmspc())
    except ValueError as error:
        raise tdx.QuoteMalformed(f"not a quote with a certificate chain: {error}") from error
