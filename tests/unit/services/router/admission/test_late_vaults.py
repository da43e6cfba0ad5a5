"""A vault that answers late, or not at all, keeps nobody else's counts from their entries."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from libs.events.publish import Enqueued
from libs.events.vault import VaultKey
from libs.events.vault_opening import AT_ONCE, OPENING_SECONDS
from libs.transparency.leaf import Kind
from services.ledger.keys import ReleasedKey
from services.ledger.storage.keyring import KeyringFile
from services.ledger.vaults.erasures import Erasures
from services.ledger.vaults.vaults import Vaults
from services.router.admission.hourly import ROUND_SECONDS, Hourly
from tests.fakes.joined_mesh import Clock
from tests.fakes.stepped_hours import SteppedHours
from tests.unit.services.ledger.writers import Keys

PATIENCE_SECONDS = 60.0
SHORT_SECONDS = 0.25
LATE = "ab" * 16
OTHERS = [f"{number:032x}" for number in range(3)]


class LateKeys(Keys):
    """A KMS that gives its halves of some vaults once it is told to, and those of all others at once."""

    def __init__(self) -> None:
        super().__init__()
        self.late: set[str] = set()
        self.goes_on = asyncio.Event()
        self.waiting = 0
        self.most_waiting = 0

    async def release(self, name: str, epoch: int = 0) -> ReleasedKey:
        if name in self.late:
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
            try:
                await self.goes_on.wait()
            finally:
                self.waiting -= 1
        return await super().release(name, epoch)


class Sum:
    """Counts to a number."""

    def __init__(self, since: int) -> None:
        self.number = 0

    def body(self, until: int) -> dict[str, Any]:
        return {"number": self.number}

    def add(self, other: Sum) -> None:
        self.number += other.number


class Log(SteppedHours):
    """A log whose ledger has a vault for each tenant."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.keys = LateKeys()
        self._folder = folder
        self.vaults = self._at_start()
        self.logged: Counter[str] = Counter()
        self.asked: list[str] = []
        """Whose vaults were asked for, in turn."""

    def _at_start(self) -> Vaults:
        file, key = KeyringFile(self._folder, b"\x01" * 32), ReleasedKey(1, b"\x02" * 32)
        clock = Clock(datetime(2026, 3, 31, tzinfo=UTC).timestamp())
        return Vaults(file, file.load(key.key), key, self.keys, Erasures(), clock)

    async def with_late(self, *tenants: str) -> None:
        """Have the KMS be late with these."""
        for tenant in tenants:
            await self.vaults.open(tenant)
        self.keys.late.update(name for name, _ in self.keys.asked)
        self.vaults = self._at_start()  # It has derived none of them yet.

    async def open(self, tenant: str) -> VaultKey:
        self.asked.append(tenant)
        return await self.vaults.open(tenant)

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None) -> Enqueued:
        assert vault is not None
        self.logged[vault.tenant] += body["number"]
        if set(OTHERS) <= set(self.logged):
            self.keys.goes_on.set()
        return Enqueued(bytes(32), bytes(32), len(self.logged))

    def hourly(self, *, round_seconds: float = ROUND_SECONDS, opening_seconds: float = OPENING_SECONDS) -> Hourly[Sum]:
        return Hourly(
            self,
            Kind.USAGE,
            Sum,
            self.open,
            clock=lambda: self.now,
            pause=self.pause,
            round_seconds=round_seconds,
            opening_seconds=opening_seconds,
        )


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


async def test_a_vault_that_answers_late_at_a_stop_loses_nobodys_counts(log: Log) -> None:
    await log.with_late(LATE)
    hourly = log.hourly()
    async with asyncio.timeout(PATIENCE_SECONDS), hourly.recording():
        for tenant in (LATE, *OTHERS):
            hourly.of(tenant).number += 1
    assert log.logged == dict.fromkeys((LATE, *OTHERS), 1)


async def test_vaults_that_never_answer_end_no_round_and_keep_their_counts(log: Log) -> None:
    silent = [f"{number:032x}" for number in range(100, 100 + 2 * AT_ONCE)]
    await log.with_late(*silent)
    hourly = log.hourly(opening_seconds=SHORT_SECONDS)
    async with asyncio.timeout(PATIENCE_SECONDS), hourly.recording():
        for tenant in (*silent, *OTHERS):
            hourly.of(tenant).number += 1
        while not log.keys.goes_on.is_set():
            await log.passes()
        assert log.logged == dict.fromkeys(OTHERS, 1)
        for tenant in silent:
            hourly.of(tenant).number += 1
    assert log.keys.most_waiting == AT_ONCE
    assert log.logged == {**dict.fromkeys(OTHERS, 1), **dict.fromkeys(silent, 2)}


async def test_whose_vault_did_not_open_comes_after_all_others(log: Log) -> None:
    await log.with_late(LATE)
    hourly = log.hourly(opening_seconds=SHORT_SECONDS)
    async with asyncio.timeout(PATIENCE_SECONDS), hourly.recording():
        hourly.of(LATE).number += 1
        await log.passes()
        for tenant in OTHERS:
            hourly.of(tenant).number += 1
        log.asked.clear()
        await log.passes()
        assert log.asked == [*OTHERS, LATE]


async def test_a_round_ends_in_time_and_loses_nothing(log: Log) -> None:
    silent = [f"{number:032x}" for number in range(100, 100 + AT_ONCE)]
    await log.with_late(*silent)
    hourly = log.hourly(opening_seconds=PATIENCE_SECONDS, round_seconds=SHORT_SECONDS)
    async with asyncio.timeout(PATIENCE_SECONDS), hourly.recording():
        for tenant in (*silent, *OTHERS):
            hourly.of(tenant).number += 1
        await log.passes()
        assert log.logged == {}
        log.keys.goes_on.set()
    assert log.logged == dict.fromkeys((*silent, *OTHERS), 1)
