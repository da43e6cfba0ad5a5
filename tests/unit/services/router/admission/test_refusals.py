"""Requests that are nobody's: one public entry an hour says how many, whatever a flood of them looks like."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from libs.events.outbox import OutboxFull
from libs.events.publish import Enqueued
from libs.transparency.leaf import Kind
from services.router.admission.hourly import PERIOD_SECONDS
from services.router.admission.refusals import Refusals
from tests.fakes.entry_schema import require_documented
from tests.fakes.stepped_hours import SteppedHours

HOUR = int(PERIOD_SECONDS)


class Hours(SteppedHours):
    """A log that takes what is documented, and a clock of which a test has hours pass."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.entries: list[Mapping[str, Any]] = []

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: object) -> Enqueued:
        if self.full:
            raise OutboxFull("no room")
        assert (kind, vault) == (Kind.REFUSALS, None)
        require_documented(kind, body)
        self.entries.append(body)
        return Enqueued(bytes(32), bytes(32), len(self.entries))


def refusals(hours: Hours) -> Refusals:
    return Refusals(hours, lambda: hours.now, hours.pause)


async def test_a_flood_of_requests_without_a_tenant_is_one_entry_an_hour() -> None:
    hours = Hours()
    counted = refusals(hours)
    async with asyncio.timeout(20), counted.recording():
        for _ in range(10_000):
            counted.count("API_KEY_INVALID")
        counted.count("TENANT_REVOKED")
        await hours.passes()
        await hours.passes()  # Nothing happened, and nothing is said.
        counted.count("API_KEY_INVALID")
        await hours.passes()
    begun = 1_000_000
    assert hours.entries == [
        {"from": begun, "until": begun + HOUR, "counts": {"API_KEY_INVALID": 10_000, "TENANT_REVOKED": 1}},
        {"from": begun + 2 * HOUR, "until": begun + 3 * HOUR, "counts": {"API_KEY_INVALID": 1}},
    ]


async def test_a_router_that_stops_says_what_it_has_counted() -> None:
    hours = Hours()
    counted = refusals(hours)
    async with asyncio.timeout(20), counted.recording():
        counted.count("API_KEY_INVALID")
        hours.now += 60
    assert hours.entries == [{"from": 1_000_000, "until": 1_000_060, "counts": {"API_KEY_INVALID": 1}}]


async def test_what_a_full_outbox_did_not_take_is_in_the_next_count() -> None:
    hours = Hours()
    counted = refusals(hours)
    async with asyncio.timeout(20), counted.recording():
        counted.count("API_KEY_INVALID")
        hours.full = True
        await hours.passes()
        assert hours.entries == []
        hours.full = False
        counted.count("API_KEY_INVALID")
        await hours.passes()
    assert hours.entries == [{"from": 1_000_000, "until": 1_000_000 + 2 * HOUR, "counts": {"API_KEY_INVALID": 2}}]
