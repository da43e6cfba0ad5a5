"""Receipts that wait for the ledger: none is lost, and no tenant's keep another's from waiting."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from services.router.proof.put_off import PutOff, ReceiptsPutOffFull, WaitingReceipt
from services.router.proof.store import open_receipt_store

MOST = 120


def waiting(number: int, tenant_id: str) -> WaitingReceipt:
    return WaitingReceipt(f"rcpt-{tenant_id}-{number}", None, tenant_id, b"{}")


async def flood(put_off: PutOff, tenant_id: str) -> int:
    """Put off as many as go; return how many went."""
    for number in range(2 * MOST):
        try:
            await put_off.put_if_room(waiting(number, tenant_id))
        except ReceiptsPutOffFull:
            return number
    raise AssertionError("nothing bounds them")


async def test_a_tenants_flood_is_refused_while_anothers_receipts_still_wait(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db", most_put_off=MOST) as store:
        assert await flood(store.put_off, "a") == MOST // 2
        for number in range(MOST // 4):
            await store.put_off.put_if_room(waiting(number, "b"))


async def test_several_that_flood_leave_room_to_whoever_has_fewer(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db", most_put_off=MOST) as store:
        put_off, flooding = store.put_off, ("a", "b", "c")
        for number in range(MOST):
            for tenant_id in flooding:
                with suppress(ReceiptsPutOffFull):
                    await put_off.put_if_room(waiting(number, tenant_id))
        assert len(await put_off.oldest(MOST)) == MOST * 3 // 4
        assert await flood(put_off, "d") > 0


async def test_shares_outlive_the_process(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db", most_put_off=MOST) as store:
        await flood(store.put_off, "a")
    async with open_receipt_store(tmp_path / "r.db", most_put_off=MOST) as store:
        with pytest.raises(ReceiptsPutOffFull):
            await store.put_off.put_if_room(waiting(MOST, "a"))
        for one in await store.put_off.oldest(MOST):
            await store.put_off.settle(one)
        assert await flood(store.put_off, "b") == MOST // 2


async def test_what_is_put_off_or_settled_twice_counts_once(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db", most_put_off=2) as store:
        for _ in range(3):
            store.put_off.put(waiting(1, "a"))
        for _ in range(3):
            await store.put_off.settle(waiting(1, "a"))
        await store.put_off.put_if_room(waiting(2, "a"))
        with pytest.raises(ReceiptsPutOffFull):
            await store.put_off.put_if_room(waiting(3, "a"))


async def test_many_at_once_are_no_more_than_may(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db", most_put_off=MOST) as store:
        asked = (store.put_off.put_if_room(waiting(number, "a")) for number in range(MOST))
        results = await asyncio.gather(*asked, return_exceptions=True)
        refused = [each for each in results if isinstance(each, ReceiptsPutOffFull)]
        assert len(refused) == len(await store.put_off.oldest(MOST)) == MOST // 2


async def test_all_that_wait_have_their_turn_and_each_tenants_come_in_order(tmp_path: Path) -> None:
    tenants = [f"t{number}" for number in range(25)]
    async with open_receipt_store(tmp_path / "r.db") as store:
        for number in range(3):
            for tenant_id in tenants:
                await store.put_off.put_if_room(waiting(number, tenant_id))
        seen: set[str] = set()
        for _ in range(3):
            batch = await store.put_off.oldest(10)
            assert len(batch) == 10
            assert {one.receipt_id[-2:] for one in batch} == {"-0"}
            seen |= {one.tenant_id for one in batch}
        assert seen == set(tenants)
        assert [one.receipt_id for one in await store.put_off.oldest(50)][:4] == [
            "rcpt-t0-0",
            "rcpt-t1-0",
            "rcpt-t2-0",
            "rcpt-t3-0",
        ]
        of_one = [one.receipt_id for one in await store.put_off.oldest(75) if one.tenant_id == "t1"]
        assert of_one == ["rcpt-t1-0", "rcpt-t1-1", "rcpt-t1-2"]
