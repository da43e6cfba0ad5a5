"""What is counted for an hour is logged once, wherever in a write the stop comes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from libs.events.outbox import OutboxFull
from libs.events.publish import Enqueued
from libs.events.vault import VaultKey
from libs.transparency.leaf import Kind
from services.router.admission.hourly import Hourly
from services.router.admission.refusals import Refusals
from services.router.admission.usage import Usage
from tests.fakes.ledgers import TENANT, VAULT
from tests.fakes.stepped_hours import SteppedHours


class SlowLog(SteppedHours):
    """A log whose disk takes its time: what is cancelled before has not been written."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.full = False
        self.entries: list[Mapping[str, Any]] = []
        self.copies: list[bytes] = []

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None) -> Enqueued:
        self.begun.set()
        await self.goes_on.wait()
        if self.full:
            self.full = False
            raise OutboxFull("no room")
        self.entries.append(body)
        return Enqueued(bytes([len(self.entries)]) * 32, bytes(32), len(self.entries))

    async def open(self, tenant_id: str) -> VaultKey:
        return VAULT

    async def keep(self, vault: VaultKey, entry_id: bytes, body: Mapping[str, Any]) -> None:
        self.copies.append(entry_id)

    async def stops_while_it_writes(self) -> None:
        """MUST be the last that a recording's body does: the write goes on only after it was told to stop."""
        passing = asyncio.ensure_future(self.passes())
        await self.begun.wait()
        passing.cancel()
        asyncio.get_running_loop().call_soon(self.goes_on.set)


@pytest.mark.parametrize("full", [False, True])
async def test_refusals_that_are_being_written_at_a_stop_are_written_once(full: bool) -> None:
    log = SlowLog()
    refusals = Refusals(log, lambda: log.now, log.pause)
    async with asyncio.timeout(20), refusals.recording():
        refusals.count("API_KEY_INVALID")
        refusals.count("API_KEY_INVALID")
        log.full = full
        await log.stops_while_it_writes()
        refusals.count("TENANT_REVOKED")  # By who was still being answered.
    counts = {reason: number for entry in log.entries for reason, number in entry["counts"].items()}
    assert counts == {"API_KEY_INVALID": 2, "TENANT_REVOKED": 1}
    assert len(log.entries) == (1 if full else 2)


async def test_use_that_is_being_written_at_a_stop_is_written_once_and_its_copy_kept() -> None:
    log = SlowLog()
    usage = Usage(log, log.open, log.keep, lambda: log.now, log.pause)
    async with asyncio.timeout(20), usage.recording():
        usage.refused(TENANT)
        await log.stops_while_it_writes()
    assert [row["refused"] for entry in log.entries for row in entry["rows"]] == [1]
    assert len(log.copies) == 1


class Sum:
    """Counts to a number."""

    def __init__(self, since: int) -> None:
        self.since = since
        self.number = 0

    def body(self, until: int) -> dict[str, Any]:
        return {"from": self.since, "until": until, "number": self.number}

    def add(self, other: Sum) -> None:
        self.since = min(self.since, other.since)
        self.number += other.number


async def test_a_log_that_stays_away_does_not_keep_a_router_from_stopping(capsys: pytest.CaptureFixture[str]) -> None:
    log = SlowLog()

    async def never(whose: str) -> VaultKey:
        log.begun.set()
        await asyncio.Event().wait()
        return VAULT

    hourly = Hourly(log, Kind.USAGE, Sum, never, clock=lambda: log.now, pause=log.pause, stopping_seconds=0.0)
    async with asyncio.timeout(20), hourly.recording():
        hourly.of("somebody").number += 1
        passing = asyncio.ensure_future(log.passes())
        await log.begun.wait()
        passing.cancel()
    assert log.entries == []
    assert "what was counted is not logged" in capsys.readouterr().out
