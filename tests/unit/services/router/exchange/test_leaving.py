"""A client that leaves, wherever an exchange is: one receipt stays, and the log says how far its response came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import pytest

from libs.aci import receipt as receipts
from libs.aci.encoding import digest
from libs.aci.receipt_events import SealedUnder, UpstreamVerified
from libs.events.vault import VaultKey
from libs.transparency.leaf import Kind
from services.router.errors import NotFound
from services.router.exchange.course import Part, Started
from services.router.proof.issuance import Issuance
from services.router.proof.kept_receipts import StoredReceipt
from tests.fakes.ledgers import TENANT, LedgerTwin
from tests.fakes.nodes import BUFFERED, STREAMED
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, aborts, prompt, until_waiting


async def cancelled_after(
    event: asyncio.Event, exchange: AsyncGenerator[Part, None], read: asyncio.Event | None = None
) -> None:
    """Let a client wait for the next part of a response, and leave once `event` has come; `read` tells of bytes."""

    async def wait() -> None:
        async with aclosing(exchange):
            async for part in exchange:
                if isinstance(part, bytes) and read is not None:
                    read.set()

    client = asyncio.create_task(wait())
    await until_waiting(event)
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client


async def test_a_client_that_leaves_a_stream_leaves_one_receipt_and_no_engine_at_work(bench: RouterBench) -> None:
    node = bench.nodes[0]
    node.stream()
    node.waits_at = 1
    read = asyncio.Event()
    async with bench.issuance.recording():
        await cancelled_after(read, bench.exchanges.run(bench.request(prompt(stream=True))), read)
        await until_waiting(node.left)
        await bench.logged()
    receipt = bench.only_receipt()
    assert aborts(receipt) == ["client_disconnected"]
    assert receipt.returned.body_hash == digest(STREAMED[0])
    assert isinstance(receipt.upstream, UpstreamVerified)


async def test_a_client_that_stops_reading_leaves_one_receipt(bench: RouterBench) -> None:
    node = bench.nodes[0]
    node.stream()
    exchange = bench.exchanges.run(bench.request(prompt(stream=True)))
    async with asyncio.timeout(PATIENCE_SECONDS), bench.issuance.recording():
        assert isinstance(await anext(exchange), Started)
        out = await anext(exchange)
        await exchange.aclose()
        await bench.logged()
        await node.left.wait()
    receipt = bench.only_receipt()
    assert isinstance(out, bytes)
    assert (aborts(receipt), receipt.returned.body_hash) == (["client_disconnected"], digest(out))


async def test_a_client_that_leaves_before_the_head_leaves_one_receipt(bench: RouterBench) -> None:
    node = bench.nodes[0]
    node.waits_before_head = True
    await cancelled_after(node.waiting, bench.exchanges.run(bench.request(prompt())))
    await until_waiting(node.left)
    async with bench.issuance.recording():
        await bench.logged()
    receipt = bench.only_receipt()
    assert aborts(receipt) == ["client_disconnected"]
    assert receipt.forwarded is not None
    assert receipt.returned.body_hash == digest(b"")
    assert not [event for event in receipt.events if isinstance(event, SealedUnder)], "its month was not known yet"


async def test_a_client_that_leaves_while_the_vault_opens_leaves_one_receipt(bench: RouterBench) -> None:
    bench.ledger.vault_waits = True
    await cancelled_after(bench.ledger.asked, bench.exchanges.run(bench.request(prompt())))
    bench.ledger.vault_waits = False
    async with bench.issuance.recording():
        await bench.logged()
    assert aborts(bench.only_receipt()) == ["client_disconnected"]


async def test_a_client_that_leaves_while_the_ledger_is_asked_is_amended(bench: RouterBench) -> None:
    bench.ledger.waits = True
    await cancelled_after(bench.ledger.asked, bench.exchanges.run(bench.request(prompt())))
    assert bench.only_receipt().returned.body_hash == digest(b"".join(BUFFERED))
    (amendment,) = bench.ledger.of(Kind.AMENDMENT)
    assert amendment["effect"] == "not_released"


@pytest.mark.parametrize("body", [prompt(), b"{"], ids=["answer", "refusal"])
async def test_a_logged_response_of_which_only_the_head_was_taken_is_amended(bench: RouterBench, body: bytes) -> None:
    exchange = bench.exchanges.run(bench.request(body))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert isinstance(await anext(exchange), Started)
        await exchange.aclose()
    (amendment,) = bench.ledger.of(Kind.AMENDMENT)
    assert (amendment["effect"], amendment["emitted_hash"]) == ("not_released", digest(b""))
    assert bench.ledger.cut == []
    assert len(bench.ledger.of(Kind.RECEIPT)) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_logged_end_that_was_not_written_to_its_end_is_amended_as_unknown(
    bench: RouterBench, stream: bool
) -> None:
    if stream:
        bench.nodes[0].stream()
    exchange = bench.exchanges.run(bench.request(prompt(stream=stream)))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not bench.ledger.entries:
            await anext(exchange)
        if not stream:
            await anext(exchange)
        await exchange.aclose()
    (amendment,) = bench.ledger.of(Kind.AMENDMENT)
    assert amendment["effect"] == "release_unknown"
    assert bench.ledger.cut == []
    assert aborts(bench.only_receipt()) == []


async def test_a_receipt_that_waits_for_its_vault_outlives_the_process(bench: RouterBench) -> None:
    bench.ledger.vault_open = False
    await bench.run(prompt())
    bench.ledger.vault_open = True
    ledger = cast(Any, bench.ledger)
    next_start = Issuance(ledger, ledger, bench.store, ledger, bench.sessions.find)
    async with next_start.recording():
        await bench.logged()
    assert aborts(bench.only_receipt()) == ["ledger_unavailable"]


async def test_a_receipt_that_the_ledger_has_been_given_at_a_stop_is_logged_once(
    bench: RouterBench,
) -> None:
    ledger = bench.ledger
    ledger.vault_open = False
    await bench.run(prompt())
    ledger.vault_open, ledger.waits = True, True
    async with bench.issuance.recording():
        await until_waiting(ledger.asked)
        asyncio.get_running_loop().call_soon(ledger.goes_on.set)
    assert await bench.store.put_off.oldest(9) == []
    stored = await bench.store.receipts.find(bench.only_receipt().receipt_id, TENANT.tenant_id)
    assert receipts.parse(stored.receipt) == bench.only_receipt()
    assert aborts(bench.only_receipt()) == ["ledger_unavailable"]


async def test_a_receipt_that_the_ledger_has_been_given_at_a_stop_and_does_not_answer_about_is_left_to_the_outbox(
    bench: RouterBench,
) -> None:
    ledger = bench.ledger
    ledger.vault_open = False
    await bench.run(prompt())
    ledger.vault_open, ledger.waits = True, True
    async with stopping_at_once(bench, ledger).recording():
        await until_waiting(ledger.asked)
    assert await bench.store.put_off.oldest(9) == []
    assert aborts(bench.only_receipt()) == ["ledger_unavailable"]


async def test_a_receipt_whose_copy_is_being_kept_at_a_stop_is_logged_once(bench: RouterBench) -> None:
    bench.nodes[0].waits_before_head = True
    await cancelled_after(bench.nodes[0].waiting, bench.exchanges.run(bench.request(prompt())))
    bench.ledger.copies_wait = True
    bench.ledger.asked.clear()
    async with stopping_at_once(bench, bench.ledger).recording():
        await until_waiting(bench.ledger.asked)
    assert await bench.store.put_off.oldest(9) == []
    assert aborts(bench.only_receipt()) == ["client_disconnected"]


async def test_a_receipt_that_waits_for_its_vault_at_a_stop_is_left_to_the_next_start(bench: RouterBench) -> None:
    bench.ledger.vault_open = False
    answer = await bench.run(prompt())
    bench.ledger.vault_open = True
    vaults = OpenedOnce(bench.ledger)
    async with stopping_at_once(bench, vaults).recording():
        await until_waiting(vaults.asked_again)
    assert [one.receipt_id for one in await bench.store.put_off.oldest(9)] == [answer.started.receipt_id]
    assert bench.ledger.entries == []


class OpenedOnce:
    """Vaults about which nobody answers a second time."""

    def __init__(self, ledger: LedgerTwin) -> None:
        self._ledger = ledger
        self._opened = False
        self.asked_again = asyncio.Event()

    async def key(self, tenant_id: str) -> VaultKey:
        if self._opened:
            self.asked_again.set()
            await asyncio.Event().wait()
        self._opened = True
        return await self._ledger.key(tenant_id)


def stopping_at_once(bench: RouterBench, vaults: LedgerTwin | OpenedOnce) -> Issuance:
    """Another start, which waits hardly for the ledger when it stops."""

    async def session(session_id: str) -> bytes:
        await bench.ledger.until_copied()
        return await bench.sessions.find(session_id)

    ledger = cast(Any, bench.ledger)
    return Issuance(ledger, cast(Any, vaults), bench.store, ledger, session, stopping_seconds=0.01)


async def test_a_client_that_leaves_while_the_copy_is_kept_is_amended_and_the_copy_is_there(bench: RouterBench) -> None:
    """The ledger has acknowledged, the response is not out: the record may not stay open, nor the copy be lost."""
    bench.nodes[0].stream()
    bench.ledger.copies_wait = True
    await cancelled_after(bench.ledger.asked, bench.exchanges.run(bench.request(prompt(stream=True))))
    receipt = bench.only_receipt()
    (amendment,) = bench.ledger.of(Kind.AMENDMENT)
    assert amendment["emitted_hash"] == digest(b"".join(STREAMED[:2]))
    bench.ledger.copies_go_on.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (stored := await found(bench, receipt.receipt_id)) is None:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
    assert receipts.parse(stored.receipt).receipt_id == receipt.receipt_id


async def found(bench: RouterBench, receipt_id: str) -> StoredReceipt | None:
    try:
        return await bench.store.receipts.find(receipt_id, TENANT.tenant_id)
    except NotFound:
        return None
