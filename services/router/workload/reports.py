"""It is responsible for attestation reports: the one that is there for anybody, and fresh ones, a quote for each.

The device is the guest's, and whoever asks need not say who they are. So what a flood of nonces can have of it is
bounded, and it keeps nobody from the report that is there.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from libs.aci import e2ee, report
from libs.identity.collateral import CollateralSource
from libs.identity.member import Member
from libs.rpc.rates import Allowances
from libs.tee import tdx
from libs.tee.dstack import GuestQuote
from libs.tee.eventlog import RUNTIME_REGISTER, with_digests
from services.router.errors import ReportsBusy
from services.router.workload.workload import Workload

MOST_AWAITED = 16
"""So many nonces may await their quote at once: whoever comes later would not get one soon."""
_CACHE_SECONDS = 3600.0
_BURST_SECONDS = 4.0
_ALL = "all"


@dataclass(frozen=True, slots=True)
class Quoted:
    """A quote, and what explains it."""

    quote: GuestQuote
    event_log: str
    """JSON, every digest stated."""
    app_compose: str


@dataclass(slots=True)
class _Flight:
    """One nonce, and all who wait for its report."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    document: bytes | None = None


class Reports:
    """Makes them. Fresh ones are quoted one at a time; the unchallenged one is kept for an hour."""

    def __init__(
        self,
        member: Member,
        workload: Workload,
        collateral: CollateralSource,
        provenance: report.SourceProvenance,
        quotes_per_second: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._member = member
        self._workload = workload
        self._collateral = collateral
        self._provenance = provenance
        self._allowances = Allowances(quotes_per_second, max(1.0, quotes_per_second * _BURST_SECONDS), clock)
        self._clock = clock
        self._quoting = asyncio.Lock()
        self._flights: dict[str, _Flight] = {}
        self._awaited = 0
        self._renewing = asyncio.Lock()
        self._unchallenged: tuple[float, bytes] | None = None

    async def report(self, nonce: str | None) -> bytes:
        """Return the report for a nonce, or the unchallenged one. Raises `NonceMalformed`, `ReportsBusy`."""
        return await (self._current() if nonce is None else self._fresh(report.check_nonce(nonce)))

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

    async def _current(self) -> bytes:
        """The unchallenged report. It waits for nobody while it is kept, and for no nonce when it is made anew."""
        if (kept := self._kept()) is not None:
            return kept
        async with self._renewing:
            if (kept := self._kept()) is None:
                kept = await self._make(None)
                self._unchallenged = (self._clock(), kept)
            return kept

    def _kept(self) -> bytes | None:
        if self._unchallenged is None or self._clock() - self._unchallenged[0] > _CACHE_SECONDS:
            return None
        return self._unchallenged[1]

    async def _fresh(self, nonce: str) -> bytes:
        """One quote for all who ask with this nonce at the same time, also if the first of them leaves."""
        flight = self._flights.get(nonce) or self._begin(nonce)
        flight.waiting += 1
        try:
            async with flight.turn:
                if flight.document is None:
                    async with self._quoting:
                        flight.document = await self._make(nonce)
                return flight.document
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

    async def _make(self, nonce: str | None) -> bytes:
        keyset = self._workload.keyset
        slot = report.slot(report.report_data(keyset.digest, nonce))
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
        return report.assemble(
            keyset,
            nonce=nonce,
            tee_type="tdx",
            provenance=self._provenance,
            evidence=evidence,
            e2ee_versions=(e2ee.VERSION,),
        )

    async def _quote(self, slot: bytes) -> Quoted:
        compose = await self._member.guest.measured_compose()
        quote = await self._member.guest.quote(slot)
        signed = tdx.read_report(quote.quote).rtmrs[RUNTIME_REGISTER]
        events = [event.to_json() for event in with_digests(quote.event_log, signed)]
        return Quoted(quote, json.dumps(events, separators=(",", ":")), compose)
