"""Receipts that wait: what a failure leaves undone is done by the next attempt, and nobody waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from libs.errors import MeshError
from libs.events.answers import EntryRejected
from libs.events.records import EntryTooLarge
from libs.jcs import JsonMalformed
from libs.policy.vault_orders import VaultPart
from libs.transparency.leaf import Kind
from services.router.proof.issuance import Issuance
from tests.fakes.ledgers import OTHER_TENANT, TENANT, VAULT
from tests.fakes.receipt_disk import fail, mend, tell
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, prompt, router_bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[RouterBench]:
    async with router_bench(tmp_path) as bench:
        yield bench


async def put_off(bench: RouterBench) -> str:
    """Have a refusal's receipt wait for the ledger, which has room for it from now on."""
    bench.ledger.full = True
    answer = await bench.run(prompt())
    bench.ledger.full = False
    bench.ledger.room_asked = asyncio.Semaphore(0)
    assert answer.started.receipt_id is not None
    return answer.started.receipt_id


def reason(error: MeshError) -> str:
    return error.reason


async def until_none_waits(bench: RouterBench) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await bench.store.put_off.oldest(9):  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


async def rounds(bench: RouterBench, count: int) -> None:
    """Wait until what waits has been looked at so often, the last time perhaps not to its end."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        for _ in range(count):
            await bench.ledger.room_asked.acquire()


async def test_a_store_that_cannot_be_read_for_a_while_ends_nothing(bench: RouterBench, tmp_path: Path) -> None:
    receipt_id = await put_off(bench)
    tell(tmp_path, "ALTER TABLE pending RENAME TO elsewhere")
    async with bench.issuance.recording():
        await rounds(bench, 2)
        tell(tmp_path, "ALTER TABLE elsewhere RENAME TO pending")
        assert (await bench.logged())["receipt_id"] == receipt_id
        await until_none_waits(bench)


async def test_what_is_logged_and_cannot_be_settled_is_settled_later_and_logged_once(
    bench: RouterBench, tmp_path: Path
) -> None:
    receipt_id = await put_off(bench)
    fail(tmp_path, "DELETE ON pending")
    async with bench.issuance.recording():
        await rounds(bench, 2)
        assert [one.receipt_id for one in await bench.store.put_off.oldest(9)] == [receipt_id]
        mend(tmp_path)
        await until_none_waits(bench)
    assert [body["receipt_id"] for body in bench.ledger.of(Kind.RECEIPT)] == [receipt_id]


async def test_a_tenant_whose_vault_does_not_open_has_one_attempt_before_anothers_receipts(bench: RouterBench) -> None:
    for _ in range(60):
        await put_off(bench)
    bench.tenant = OTHER_TENANT
    others = [await put_off(bench) for _ in range(3)]
    bench.ledger.unopened = {TENANT.tenant_id}
    bench.ledger.opened_for.clear()
    async with bench.issuance.recording():
        assert [(await bench.logged())["receipt_id"] for _ in others] == others
        assert bench.ledger.opened_for.count(TENANT.tenant_id) == 1


async def test_a_vault_that_nobody_answers_about_holds_up_no_other_tenants_receipts(bench: RouterBench) -> None:
    await put_off(bench)
    bench.tenant = OTHER_TENANT
    others = [await put_off(bench) for _ in range(3)]
    bench.ledger.silent_vaults = {TENANT.tenant_id}
    ledger: Any = bench.ledger
    impatient = Issuance(ledger, ledger, bench.store, ledger, bench.sessions.find, opening_seconds=0.05)
    async with asyncio.timeout(PATIENCE_SECONDS), impatient.recording():
        assert [(await bench.logged())["receipt_id"] for _ in others] == others


async def test_a_ledger_that_may_still_refuse_this_start_is_given_nothing_that_waits(bench: RouterBench) -> None:
    receipt_id = await put_off(bench)
    bench.ledger.is_admitted = False
    async with bench.issuance.recording():
        await rounds(bench, 2)
        assert bench.ledger.of(Kind.RECEIPT) == []
        bench.ledger.is_admitted = True
        assert (await bench.logged())["receipt_id"] == receipt_id


@pytest.mark.parametrize("error", [EntryTooLarge("it has 600000 bytes"), JsonMalformed("it is none")], ids=reason)
async def test_a_receipt_that_no_log_would_ever_take_holds_no_place(bench: RouterBench, error: MeshError) -> None:
    await put_off(bench)
    bench.ledger.broken = error
    async with bench.issuance.recording():
        await until_none_waits(bench)
    assert bench.ledger.of(Kind.RECEIPT) == []


async def test_a_receipt_that_the_ledger_refuses_is_sealed_anew(bench: RouterBench) -> None:
    receipt_id = await put_off(bench)
    bench.ledger.broken = EntryRejected("the ledger refused the entry: VAULT_UNKNOWN")
    async with bench.issuance.recording():
        await rounds(bench, 2)
        bench.ledger.broken = None
        assert (await bench.logged())["receipt_id"] == receipt_id
        await until_none_waits(bench)
    assert VaultPart(VAULT.vault_id, VAULT.epoch) in bench.ledger.dropped
