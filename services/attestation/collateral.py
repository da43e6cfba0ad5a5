"""It is responsible for vendor collateral: fetched once per platform, kept while it is valid, never waited for twice.

Collateral is signed by the vendor, so a wrong or stale answer from the PCCS can only make evidence fail.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

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


class CollateralCache:
    """Collateral by platform (FMSPC)."""

    def __init__(self, pccs_url: str, timeout_seconds: float) -> None:
        self._pccs_url = pccs_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._held: dict[str, Held] = {}
        self._failed: dict[str, tuple[float, CollateralUnavailable]] = {}
        self._fetching: dict[str, asyncio.Lock] = {}

    async def collateral(self, quote: bytes) -> Collateral:
        """Return the collateral of a quote's platform. Raises `QuoteMalformed` or `CollateralUnavailable`."""
        return (await self.held(quote)).collateral

    async def held(self, quote: bytes) -> Held:
        """The same with its validity."""
        quote = tdx.cut(quote)
        fmspc = _fmspc(quote)
        if (held := self._usable(fmspc)) is not None:
            return held
        if len(self._fetching) >= _MAX_PLATFORMS and fmspc not in self._fetching:
            raise CollateralUnavailable("too many platforms are asked for at once")
        async with self._fetching.setdefault(fmspc, asyncio.Lock()):
            if (held := self._usable(fmspc)) is not None:
                return held
            self._repeat_failure(fmspc)
            try:
                held = await self._fetch(quote)
            except CollateralUnavailable as error:
                self._failed[fmspc] = (time.monotonic(), error)
                raise
            self._held[fmspc] = held
            log.info("collateral fetched", fmspc=fmspc, valid_until=int(held.valid_until))
            return held

    def _usable(self, fmspc: str) -> Held | None:
        held = self._held.get(fmspc)
        return held if held is not None and held.valid_until - _REFRESH_BEFORE_SECONDS > time.time() else None

    def _repeat_failure(self, fmspc: str) -> None:
        if fmspc in self._failed and time.monotonic() - self._failed[fmspc][0] < _FAILURE_SECONDS:
            raise CollateralUnavailable(str(self._failed[fmspc][1]))

    async def _fetch(self, quote: bytes) -> Held:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                fetched = await dcap_qvl.get_collateral(self._pccs_url, quote)
        except (OSError, ValueError, RuntimeError, TimeoutError) as error:
            raise CollateralUnavailable(f"the PCCS at {self._pccs_url} gave no collateral: {error}") from error
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
