"""Receipts and this router's disk: what a failure leaves undone is done by the next, and nobody waits for another."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from libs.aci.receipt_events import UpstreamVerified
from libs.transparency.leaf import Kind
from services.router.errors import NotFound
from services.router.proof.issuance import Issuance
from tests.fakes.ledgers import OTHER_TENANT, TENANT
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, prompt, router_bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[RouterBench]:
    async with router_bench(tmp_path) as bench:
        yield bench


def tell(folder: Path, statement: str) -> None:
    """Change the store's file behind the router's back, so that what it does there fails as on a bad disk."""
    with closing(sqlite3.connect(folder / "receipts.sqlite")) as other, other:
        other.execute(statement)


def fail(folder: Path, what: str) -> None:
    tell(folder, f"CREATE TRIGGER broken BEFORE {what} BEGIN SELECT RAISE(ABORT, 'the disk'); END")


def mend(folder: Path) -> None:
    tell(folder, "DROP TRIGGER broken")


async def test_a_session_is_handed_over_again_where_the_first_copy_was_not_kept(
    bench: RouterBench, tmp_path: Path
) -> None:
    fail(tmp_path, "INSERT ON receipts")
    await bench.run(prompt())
    upstream = bench.only_receipt().upstream
    assert isinstance(upstream, UpstreamVerified)
    session = bytes.fromhex(upstream.session_id)
    with pytest.raises(NotFound):
        await bench.store.documents.find(session)
    mend(tmp_path)
    await bench.run(prompt())
    assert await bench.store.documents.find(session)


async def put_off(bench: RouterBench) -> str:
    """Have a refusal's receipt wait for the ledger, which has room for it from now on."""
    bench.ledger.full = True
    answer = await bench.run(prompt())
    bench.ledger.full = False
    bench.ledger.room_asked = asyncio.Semaphore(0)
    assert answer.started.receipt_id is not None
    return answer.started.receipt_id


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
