"""What a tenant used is written once: by key and model, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from libs.aci.usage import Tokens
from libs.errors import Code, MeshError
from libs.events.outbox import OutboxFull
from libs.events.publish import Enqueued
from libs.events.vault import VaultKey
from libs.policy.tenant_record import ApiKey
from libs.transparency.leaf import Kind
from services.router.admission.usage import MOST_ROWS, Usage
from tests.fakes.entry_schema import require_documented
from tests.fakes.ledgers import TENANT, VAULT
from tests.fakes.stepped_hours import SteppedHours

OTHER = replace(TENANT, tenant_id="cd" * 16, key=ApiKey("two", "22" * 32))


class VaultErased(MeshError):
    reason = "VAULT_ERASED"


class VaultAway(MeshError):
    code = Code.UNAVAILABLE
    reason = "LEDGER_UNAVAILABLE"


class DiskFull(MeshError):
    reason = "RECEIPT_STORE_FAILED"


class Hours(SteppedHours):
    """A log and its vaults, and a clock of which a test has hours pass."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.broken: dict[str, MeshError] = {}
        self.meanwhile: Callable[[], None] | None = None
        """What happens while a vault is opened."""
        self.opening: asyncio.Event | None = None
        self.entries: list[tuple[str, Mapping[str, Any]]] = []
        self.copies: list[tuple[str, bytes, Mapping[str, Any]]] = []
        self.disk_full = False

    async def key(self, tenant_id: str) -> VaultKey:
        if self.opening is not None:
            self.opening.set()
            await asyncio.Event().wait()
        if self.meanwhile is not None:
            self.meanwhile()
        if tenant_id in self.broken:
            raise self.broken[tenant_id]
        return replace(VAULT, tenant=tenant_id)

    async def keep(self, vault: VaultKey, entry_id: bytes, body: Mapping[str, Any]) -> None:
        if self.disk_full:
            raise DiskFull("no space")
        self.copies.append((vault.tenant, entry_id, body))

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None) -> Enqueued:
        if self.full:
            raise OutboxFull("no room")
        assert kind is Kind.USAGE
        assert vault is not None
        require_documented(kind, body)
        self.entries.append((vault.tenant, body))
        return Enqueued(len(self.entries).to_bytes(32, "big"), bytes(32), len(self.entries))

    def total(self, tenant_id: str, name: str) -> int:
        return sum(row[name] for tenant, body in self.entries if tenant == tenant_id for row in body["rows"])


@pytest.fixture
def hours() -> Hours:
    return Hours()


def usage_of(hours: Hours) -> Usage:
    return Usage(hours, hours.key, hours.keep, lambda: hours.now, hours.pause)


def row(model: str | None, requests: int, refused: int, unmetered: int, prompt: int, completion: int) -> dict[str, Any]:
    counts = {"requests": requests, "refused": refused, "unmetered": unmetered}
    return {"key": "one", "model": model, **counts, "prompt_tokens": prompt, "completion_tokens": completion}


async def test_an_hours_use_is_one_entry_of_each_tenant(hours: Hours) -> None:
    usage = usage_of(hours)
    async with asyncio.timeout(20), usage.recording():
        usage.answered(TENANT, "m", Tokens(3, 5))
        usage.answered(TENANT, "m", Tokens(4, 6))
        usage.answered(TENANT, "m", Tokens(4, None))
        usage.refused(TENANT)
        usage.refused_without_receipt(TENANT, "TENANT_RATE_EXCEEDED")
        usage.answered(OTHER, "n", Tokens(1, 1))
        await hours.passes()
        await hours.passes()  # Nothing happened, and nothing is said.
        assert [tenant for tenant, _ in hours.entries] == [TENANT.tenant_id, OTHER.tenant_id]
        usage.answered(TENANT, "m", Tokens(100, 0))
    (_, first), _, (_, second) = hours.entries
    assert first == {
        "from": 1_000_000,
        "until": 1_003_600,
        "rows": [row("m", 3, 0, 1, 7, 11), row(None, 1, 1, 0, 0, 0)],
        "without_receipt": {"TENANT_RATE_EXCEEDED": 1},
    }
    assert second["rows"] == [row("m", 1, 0, 0, 100, 0)]


@pytest.mark.parametrize("disk_full", [False, True])
async def test_a_copy_is_kept_of_what_is_logged_and_its_loss_repeats_nothing(hours: Hours, disk_full: bool) -> None:
    usage = usage_of(hours)
    hours.disk_full = disk_full
    async with asyncio.timeout(20), usage.recording():
        usage.answered(TENANT, "m", Tokens(3, 5))
        await hours.passes()
    ((_, body),) = hours.entries
    assert hours.copies == ([] if disk_full else [(TENANT.tenant_id, (1).to_bytes(32, "big"), body)])


@pytest.mark.parametrize("failure", ["vault", "outbox"])
async def test_what_cannot_be_written_is_written_with_the_next_and_once(hours: Hours, failure: str) -> None:
    usage = usage_of(hours)
    async with asyncio.timeout(20), usage.recording():
        usage.answered(TENANT, "m", Tokens(3, 5))
        usage.answered(OTHER, "m", Tokens(1, 1))
        hours.full = failure == "outbox"
        hours.broken = {TENANT.tenant_id: VaultAway("away")} if failure == "vault" else {}
        await hours.passes()
        assert hours.total(OTHER.tenant_id, "requests") == (failure == "vault")
        hours.full, hours.broken = False, {}
        usage.answered(TENANT, "m", Tokens(4, 6))
        await hours.passes()
        await hours.passes()
    ((_, body),) = [entry for entry in hours.entries if entry[0] == TENANT.tenant_id]
    assert (body["from"], body["rows"]) == (1_000_000, [row("m", 2, 0, 0, 7, 11)])


async def test_what_comes_while_a_vault_does_not_open_is_added_to_what_waits(hours: Hours) -> None:
    usage = usage_of(hours)
    async with asyncio.timeout(20), usage.recording():
        usage.answered(TENANT, "m", Tokens(3, 5))
        usage.refused_without_receipt(TENANT, "TENANT_RATE_EXCEEDED")
        hours.broken = {TENANT.tenant_id: VaultAway("away")}
        hours.meanwhile = lambda: usage.answered(TENANT, "n", Tokens(4, 6))
        await hours.passes()
        hours.broken, hours.meanwhile = {}, None
    ((_, body),) = hours.entries
    assert body["from"] == 1_000_000
    assert sorted(body["rows"], key=str) == sorted([row("m", 1, 0, 0, 3, 5), row("n", 1, 0, 0, 4, 6)], key=str)
    assert body["without_receipt"] == {"TENANT_RATE_EXCEEDED": 1}


async def test_what_nobody_could_read_is_not_kept(hours: Hours) -> None:
    usage = usage_of(hours)
    hours.broken = {TENANT.tenant_id: VaultErased("erased")}
    async with asyncio.timeout(20), usage.recording():
        usage.answered(TENANT, "m", Tokens(3, 5))
        await hours.passes()
        hours.broken = {}
    assert hours.entries == []


async def test_a_stop_while_a_vault_is_opened_writes_it_once(hours: Hours) -> None:
    usage = usage_of(hours)
    async with asyncio.timeout(20), usage.recording():
        usage.answered(TENANT, "m", Tokens(3, 5))
        hours.opening = asyncio.Event()
        passing = asyncio.ensure_future(hours.passes())
        await hours.opening.wait()
        hours.opening = None
        passing.cancel()
    assert hours.total(TENANT.tenant_id, "requests") == 1


async def test_rows_are_bounded_and_lose_nothing_but_the_model(hours: Hours) -> None:
    usage = usage_of(hours)
    async with asyncio.timeout(20), usage.recording():
        for number in range(2 * MOST_ROWS):
            usage.answered(TENANT, f"m{number}", Tokens(1, 2))
    ((_, body),) = hours.entries
    assert len(body["rows"]) == MOST_ROWS + 1
    assert hours.total(TENANT.tenant_id, "requests") == 2 * MOST_ROWS
    assert hours.total(TENANT.tenant_id, "completion_tokens") == 4 * MOST_ROWS
