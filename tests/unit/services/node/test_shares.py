"""One tenant's part of an engine: no more than is its own, and nobody else's."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, aclosing

import pytest

from libs.aci.receipt_events import PolicyInForce
from libs.identity.gpu_watch import GpuStanding
from services.node.generation import Claimed, Conclusion, Generation, Head, Part, Request
from services.node.receipts import ReceiptSigner
from services.node.shares import TenantShares, TenantShareTaken
from tests.unit.services.node.test_servicer import EndlessEngine

CHAT = "/v1/chat/completions"


def test_a_tenant_has_as_many_as_may_and_gets_back_what_ends() -> None:
    shares = TenantShares(2)
    with ExitStack() as first:
        first.enter_context(shares.held("a"))
        with shares.held("a"):
            with pytest.raises(TenantShareTaken) as refused:
                shares.held("a").__enter__()
            assert refused.value.reason == "TENANT_SHARE_TAKEN"
            with shares.held("b"):
                pass
        with shares.held("a"):
            pass


def test_what_is_counted_are_sequences_and_a_request_is_one_until_it_is_read() -> None:
    shares = TenantShares(3)
    with shares.held("a") as first:
        first(2)
        with shares.held("a") as second:
            with pytest.raises(TenantShareTaken):
                second(2)
            second(1)
            with pytest.raises(TenantShareTaken):
                shares.held("a").__enter__()
            first(1)
            with shares.held("a"):
                pass
    assert not shares.tenants
    with shares.held("a") as alone:
        alone(3)


def test_without_a_bound_there_is_none() -> None:
    shares = TenantShares(0)
    with ExitStack() as held:
        for _ in range(1000):
            held.enter_context(shares.held("a"))


def test_a_tenant_that_has_nothing_here_is_not_remembered() -> None:
    shares = TenantShares(1)
    for number in range(1000):
        with shares.held(f"tenant-{number}"):
            pass
    assert not shares.tenants


def generation(engine: EndlessEngine, tenant_parallel: int = 1) -> Generation:
    claimed = Claimed("an engine", bytes(32), {"m": bytes(32)})
    policy = PolicyInForce(1, "sha256:" + "0" * 64)
    return Generation(engine, claimed, ReceiptSigner(), lambda: policy, GpuStanding(), tenant_parallel=tenant_parallel)


HI = b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}'


def request(tenant: str, body: bytes = HI) -> Request:
    return Request(CHAT, body, "r", tenant)


async def head_of(serving: Generation, tenant: str, body: bytes = HI) -> Part:
    async with aclosing(serving.generate(request(tenant, body), 5.0)) as parts:
        return await anext(parts)


async def test_whoever_sends_them_a_tenants_requests_are_counted_together() -> None:
    """The same tenant's comes by another router while the first stream goes on, and by the first once it has ended."""
    serving = generation(EndlessEngine(ends=False))
    async with aclosing(serving.generate(request("a"), 5.0)) as running:
        assert isinstance(await anext(running), Head)
        with pytest.raises(TenantShareTaken):
            await head_of(serving, "a")
        assert isinstance(await head_of(serving, "b"), Head)
    assert isinstance(await head_of(serving, "a"), Head)


async def test_a_tenants_choices_are_so_many_of_its_share() -> None:
    engine = EndlessEngine(ends=False, places=4)
    serving = generation(engine, tenant_parallel=3)
    two = HI[:-1] + b',"n":2}'
    async with aclosing(serving.generate(request("a", two), 5.0)) as running:
        assert await anext(running) == Head(200, "text/event-stream")
        with pytest.raises(TenantShareTaken):
            await head_of(serving, "a", two)
        assert await head_of(serving, "b", two) == Head(200, "text/event-stream")
        assert await head_of(serving, "a") == Head(200, "text/event-stream")
    # What would never have room is no matter of time.
    assert await head_of(serving, "a", HI[:-1] + b',"n":4}') == Head(400, "application/json")
    assert engine.sequences == [2, 2, 1]


@pytest.mark.parametrize("body", [b'{"model":"m"}', b"none"], ids=["answered", "refused"])
async def test_who_is_given_the_last_of_an_answer_has_its_part_back(body: bytes) -> None:
    """Also before it asks whether there is more: its next request may be faster."""
    serving = generation(EndlessEngine(ends=True))
    async with aclosing(serving.generate(request("a", body), 5.0)) as parts:
        while not isinstance(await anext(parts), Conclusion):
            pass
        assert isinstance(await head_of(serving, "a"), Head)


async def test_of_a_tenant_that_has_no_room_nothing_is_read() -> None:
    serving = generation(EndlessEngine(ends=False))
    async with aclosing(serving.generate(request("a"), 5.0)) as running:
        assert isinstance(await anext(running), Head)
        with pytest.raises(TenantShareTaken):
            await head_of(serving, "a", b"no body at all")


async def test_a_request_that_is_given_up_before_its_answer_gives_its_part_back() -> None:
    serving = generation(EndlessEngine(ends=False))
    task = asyncio.create_task(head_of(serving, "a"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert isinstance(await head_of(serving, "a"), Head)
