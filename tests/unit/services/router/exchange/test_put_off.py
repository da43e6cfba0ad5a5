"""Refusals whose receipts cannot be logged now: they wait, by tenants, and hold up nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from libs.aci.encoding import digest
from libs.aci.receipt_events import UpstreamFailed
from libs.transparency.leaf import Kind
from services.router.errors import LedgerUnavailable, RouterError
from tests.fakes.ledgers import OTHER_TENANT, TENANT
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, prompt, router_bench


def error_type(body: bytes) -> str:
    value: str = json.loads(body)["error"]["type"]
    return value


def _outbox_is_full(bench: RouterBench, yes: bool) -> None:
    bench.ledger.full = yes


def _policy_is_stale(bench: RouterBench, yes: bool) -> None:
    bench.member.policy.fresh = not yes


NOT_NOW = [
    pytest.param(_outbox_is_full, "ledger_unavailable", "ledger_unavailable", id="full outbox"),
    pytest.param(_policy_is_stale, "service_unavailable", "service_unavailable", id="stale policy"),
]


@pytest.mark.parametrize(("hinder", "error", "why"), NOT_NOW)
async def test_what_refuses_before_anything_is_done_leaves_one_receipt_once_it_can_be_logged(
    bench: RouterBench, hinder: Callable[[RouterBench, bool], None], error: str, why: str
) -> None:
    hinder(bench, True)
    body = prompt()
    answer = await bench.run(body)
    assert (answer.started.status, error_type(answer.body)) == (503, error)
    assert bench.nodes[0].requests == []
    assert bench.ledger.entries == []
    assert [one.receipt_id for one in await bench.store.put_off.oldest(9)] == [answer.started.receipt_id]
    hinder(bench, False)
    async with bench.issuance.recording():
        await bench.logged()
    receipt = bench.only_receipt()
    assert receipt.receipt_id == answer.started.receipt_id
    assert (receipt.received.body_hash, receipt.returned.body_hash) == (digest(body), digest(answer.body))
    assert receipt.upstream == UpstreamFailed(required=True, model_id="none", reason=why)
    assert receipt.forwarded is None
    assert bench.ledger.of(Kind.AMENDMENT) == []


@pytest.mark.parametrize(("hinder", "error", "why"), NOT_NOW)
async def test_more_refusals_than_may_wait_have_no_receipt_and_no_head(
    tmp_path: Path, hinder: Callable[[RouterBench, bool], None], error: str, why: str
) -> None:
    async with router_bench(tmp_path, most_put_off=4) as bench:
        hinder(bench, True)
        for _ in range(2):
            assert (await bench.run(prompt())).started.receipt_id
        with pytest.raises(RouterError) as refusal:
            await bench.run(prompt())
        assert refusal.value.type == error
        assert len(await bench.store.put_off.oldest(9)) == 2


@pytest.mark.parametrize(("hinder", "error", "why"), NOT_NOW)
async def test_a_tenants_refusals_take_no_receipts_from_anothers(
    tmp_path: Path, hinder: Callable[[RouterBench, bool], None], error: str, why: str
) -> None:
    async with router_bench(tmp_path, most_put_off=8) as bench:
        hinder(bench, True)
        for _ in range(4):
            await bench.run(prompt())
        for _ in range(8):
            with pytest.raises(RouterError):
                await bench.run(prompt())
        bench.tenant = OTHER_TENANT
        answer = await bench.run(prompt())
        assert error_type(answer.body) == error
        hinder(bench, False)
        async with bench.issuance.recording():
            logged = [await bench.logged() for _ in range(5)]
        # Tenants take turns, whoever has more.
        assert answer.started.receipt_id in [each["receipt_id"] for each in logged[:2]]


async def test_a_tenant_for_whose_receipts_there_is_no_room_is_served_nothing_that_would_leave_one(
    tmp_path: Path,
) -> None:
    """Each answer that is not released leaves a receipt that waits: they are bounded as refusals are."""
    async with router_bench(tmp_path, most_put_off=8) as bench:
        bench.ledger.vault_open = False
        for _ in range(4):
            await bench.run(prompt())
        served = len(bench.nodes[0].requests)
        for _ in range(4):
            with pytest.raises(LedgerUnavailable):
                await bench.run(prompt())
        assert (served, len(bench.nodes[0].requests)) == (4, 4)
        assert len(await bench.store.put_off.oldest(99)) == 4
        bench.tenant = OTHER_TENANT
        assert (await bench.run(prompt())).started.receipt_id


async def test_receipts_that_cannot_be_logged_hold_up_nobody_elses(bench: RouterBench) -> None:
    bench.ledger.full = True
    for _ in range(120):
        await bench.run(prompt())
    bench.tenant = OTHER_TENANT
    other = await bench.run(prompt())
    bench.ledger.full = False
    bench.ledger.unopened = {TENANT.tenant_id}
    async with bench.issuance.recording():
        assert (await bench.logged())["receipt_id"] == other.started.receipt_id


async def test_a_tenant_whose_share_of_the_outbox_is_full_is_refused_before_anything_is_done_and_nobody_else(
    bench: RouterBench,
) -> None:
    bench.ledger.without_share = {TENANT.tenant_id}
    refused = await bench.run(prompt())
    assert (error_type(refused.body), bench.nodes[0].requests) == ("ledger_unavailable", [])
    bench.tenant = OTHER_TENANT
    assert (await bench.run(prompt())).started.status == 200
    async with asyncio.timeout(PATIENCE_SECONDS), bench.issuance.recording():
        await bench.ledger.room_asked.acquire()
        bench.ledger.opened_for.clear()
        for _ in range(2):
            await bench.ledger.room_asked.acquire()
        assert bench.ledger.opened_for == [], "what waits is not given to it either"
        bench.ledger.without_share = set()
        while (await bench.logged())["receipt_id"] != refused.started.receipt_id:
            pass
    assert len([one for one in bench.ledger.of(Kind.RECEIPT) if one["receipt_id"] == refused.started.receipt_id]) == 1


async def test_a_client_that_leaves_while_its_refusal_is_put_off_leaves_one_receipt(bench: RouterBench) -> None:
    bench.ledger.full = True
    asking = asyncio.create_task(bench.run(prompt()))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    bench.ledger.full = False
    async with bench.issuance.recording():
        await bench.logged()
    assert bench.only_receipt().upstream == UpstreamFailed(True, "none", "ledger_unavailable")


async def test_while_the_outbox_is_full_nothing_that_waits_is_given_to_it(bench: RouterBench) -> None:
    bench.ledger.full = True
    bench.ledger.vault_waits = True
    await bench.run(prompt())
    async with asyncio.timeout(PATIENCE_SECONDS), bench.issuance.recording():
        for _ in range(2):
            await bench.ledger.room_asked.acquire()
    assert not bench.ledger.asked.is_set(), "a vault was opened for what there is no room for"
