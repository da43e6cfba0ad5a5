"""It is responsible for what attestation reports are made of: that which is there for anybody, and a fresh quote for
each nonce.

The device is the guest's, and whoever asks need not say who they are. So what a flood can have of it is bounded, also
while it fails, and it keeps nobody from the report that is there: one without a nonce proves no freshness, and is good
for as long as its keyset (ACI section 3.2). All of them name the newest keyset, and none that has ended.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from libs.aci import report
from libs.aci.keyset import Keyset
from libs.errors import Code, MeshError
from libs.identity.collateral import CollateralSource
from libs.rpc.rates import Allowances
from libs.tee import tdx
from libs.tee.dstack import Guest, GuestQuote
from libs.tee.eventlog import RUNTIME_REGISTER, with_digests

TEE_TYPE = "tdx"
MOST_AWAITED = 16
"""So many nonces may await their quote at once: whoever comes later would not get one soon."""
_CACHE_SECONDS = 3600.0
_BURST_SECONDS = 4.0
_FAILED_SECONDS = 10.0
"""After a failure so long nobody who asks without a nonce causes another try."""
_ALL, _UNCHALLENGED = "all", "unchallenged"

log = structlog.get_logger()


class ReportsBusy(MeshError):
    """More fresh reports are asked for than the quote device is to make."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "REPORTS_BUSY"
    retry_seconds = 1


class ReportNotMade(MeshError):
    """The report that is there for anybody could not be made a moment ago."""

    code = Code.UNAVAILABLE
    reason = "REPORT_NOT_MADE"


class Shown(Protocol):
    """A keyset that is served under."""

    @property
    def keyset(self) -> Keyset: ...

    @property
    def digest(self) -> str: ...


class Keysets(Protocol):
    """What a service is served under."""

    @property
    def keyset_digest(self) -> str:
        """The newest keyset's."""
        ...

    def lasting(self, seconds: float) -> Shown:
        """Return the newest keyset, if it lasts for so long. MUST raise if it does not."""
        ...


@dataclass(frozen=True, slots=True)
class Quoted:
    """A quote, and what explains it."""

    quote: GuestQuote
    event_log: str
    """JSON, every digest stated."""
    app_compose: str


@dataclass(frozen=True, slots=True)
class Made:
    """One report, but for what it tells those who asked."""

    keyset: Keyset
    nonce: str | None
    evidence: Mapping[str, Any]
    told: dict[str, bytes] = field(default_factory=dict)
    """For the service's own use: the whole of it, by whom it is for."""


@dataclass(slots=True)
class _Flight:
    """One nonce, and all who wait for its report."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    tried: bool = False
    made: Made | None = None


class Reports:
    """Makes them. Fresh ones are quoted one at a time; the unchallenged one is made anew after an hour."""

    def __init__(
        self,
        guest: Guest,
        keysets: Keysets,
        collateral: CollateralSource,
        quotes_per_second: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._guest = guest
        self._keysets = keysets
        self._collateral = collateral
        self._allowances = Allowances(quotes_per_second, max(1.0, quotes_per_second * _BURST_SECONDS), clock)
        self._clock = clock
        self._quoting = asyncio.Lock()
        self._flights: dict[str, _Flight] = {}
        self._awaited = 0
        self._renewing = asyncio.Lock()
        self._unchallenged: dict[str, tuple[float, Made]] = {}
        """By the digest of the keyset: the newest's, and for a moment its successor's."""
        self._failed: tuple[float, str] | None = None
        """When the newest's could not be made anew, and the reason."""

    async def made(self, nonce: str | None) -> Made:
        """Return the report for a nonce, or the unchallenged one. Raises `NonceMalformed`, `ReportsBusy`,
        `ReportNotMade`, and what keysets, device and collateral fail with.
        """
        shown = self._keysets.lasting(0)
        if nonce is None:
            return await self._for_anybody(shown)
        return await self._fresh(report.check_nonce(nonce))

    async def quoted(self, slot: bytes) -> Quoted:
        """Return a quote over 64 bytes for a report of another form, which this one's MUST NOT be taken for: within
        what the device may be asked for. Raises `ReportsBusy`.
        """
        if self._awaited >= MOST_AWAITED or not self._allowances.take(_ALL):
            raise ReportsBusy("reports are asked for too often; try again")
        self._awaited += 1
        try:
            async with self._quoting:
                return await self._quote(slot)
        finally:
            self._awaited -= 1

    async def unchallenged(self, shown: Shown) -> Made:
        """Return a keyset's report without a nonce, made now if none is kept: for this service's own use, which nobody
        can ask for too often.
        """
        async with self._renewing:
            return self._kept(shown) or await self._make_unchallenged(shown)

    async def _for_anybody(self, shown: Shown) -> Made:
        """The report without a nonce. It waits for nobody while it is kept, and for no nonce when it is made anew.
        While that goes on, and where it fails, the one before is as good, as long as its keyset.
        """
        if (kept := self._kept(shown)) is not None:
            return kept
        _, before = self._unchallenged.get(shown.digest, (0.0, None))
        if before is not None and self._renewing.locked():
            return before
        async with self._renewing:
            if (kept := self._kept(shown)) is not None:
                return kept
            try:
                self._require_try()
                return await self._make_unchallenged(shown)
            except MeshError as error:
                if not isinstance(error, ReportsBusy | ReportNotMade):
                    self._failed = self._clock(), error.reason
                    log.warning("the report is not made anew", reason=error.reason, detail=str(error))
                if before is None:
                    raise
                return before

    def _require_try(self) -> None:
        """Raises `ReportNotMade` where the last try failed a moment ago, and `ReportsBusy`: whoever asks and leaves
        lets the device work, too.
        """
        if self._failed is not None and self._clock() - self._failed[0] < _FAILED_SECONDS:
            raise ReportNotMade(f"not now: {self._failed[1]}")
        if not self._allowances.take(_UNCHALLENGED):
            raise ReportsBusy("reports are asked for too often; try again")

    async def _make_unchallenged(self, shown: Shown) -> Made:
        made = await self._make(shown, None)
        current = self._keysets.keyset_digest
        self._unchallenged = {name: one for name, one in self._unchallenged.items() if name == current}
        self._unchallenged[shown.digest] = self._clock(), made
        return made

    def _kept(self, shown: Shown) -> Made | None:
        made_at, made = self._unchallenged.get(shown.digest, (0.0, None))
        return None if made is None or self._clock() - made_at > _CACHE_SECONDS else made

    async def _fresh(self, nonce: str) -> Made:
        """One quote for all who ask with this nonce at the same time, also if the first of them leaves."""
        flight = self._flights.get(nonce) or self._begin(nonce)
        flight.waiting += 1
        try:
            async with flight.turn:
                if flight.made is None:
                    # The one before has failed, or left.
                    if flight.tried and not self._allowances.take(_ALL):
                        raise ReportsBusy("reports are asked for too often; try again, or take the one without a nonce")
                    flight.tried = True
                    async with self._quoting:
                        flight.made = await self._make(self._keysets.lasting(0), nonce)
                return flight.made
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                del self._flights[nonce]

    def _begin(self, nonce: str) -> _Flight:
        if len(self._flights) >= MOST_AWAITED:
            raise ReportsBusy("too many reports are awaited; try again, or take the one without a nonce")
        if not self._allowances.take(_ALL):
            raise ReportsBusy("reports are asked for too often; try again, or take the one without a nonce")
        flight = self._flights[nonce] = _Flight()
        return flight

    async def _make(self, shown: Shown, nonce: str | None) -> Made:
        keyset = shown.keyset
        slot = report.slot(report.report_data(shown.digest, nonce))
        quoted = await self._quote(slot)
        quote = quoted.quote
        collateral = await self._collateral.collateral(quote.quote)
        evidence = {
            "quote": quote.quote.hex(),
            "quote_report_data": slot.hex(),
            "event_log": quoted.event_log,
            "app_compose": quoted.app_compose,
            "vm_config": quote.vm_config,
            "collateral": collateral.to_json(),
            "key_custody": {
                "provider": "in-tee",
                "keys": [{"role": "receipt", "public_key": key.public_key} for key in keyset.receipt_signing_keys]
                + [{"role": "e2ee", "public_key": key.public_key} for key in keyset.e2ee_public_keys]
                + [{"role": "tls", "spki_sha256": key.spki_sha256} for key in keyset.tls_public_keys],
            },
        }
        return Made(keyset, nonce, evidence)

    async def _quote(self, slot: bytes) -> Quoted:
        compose = await self._guest.measured_compose()
        quote = await self._guest.quote(slot)
        signed = tdx.read_report(quote.quote).rtmrs[RUNTIME_REGISTER]
        events = [event.to_json() for event in with_digests(quote.event_log, signed)]
        return Quoted(quote, json.dumps(events, separators=(",", ":")), compose)
