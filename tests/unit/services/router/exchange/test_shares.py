"""A node that takes no more of a tenant: another one is asked, and who holds its share of all of them is told so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from libs.aci import endpoints
from libs.aci.encoding import digest
from libs.aci.receipt_events import UpstreamVerified
from libs.policy.tenant_record import Limits
from services.node.shares import TenantShares
from services.router.routing.settings import RoutingSettings
from tests.fakes.ledgers import OTHER_TENANT
from tests.fakes.nodes import NodeTwin
from tests.fakes.routers import PATIENCE_SECONDS, RouterBench, aborts, prompt, router_bench

SETTINGS = RoutingSettings(breaker_failures=2)


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[RouterBench]:
    """Two nodes that take one request of each tenant at once."""
    async with router_bench(tmp_path, nodes=2, routing=SETTINGS) as bench:
        for node in bench.nodes:
            node.shares = TenantShares(1)
        yield bench


@contextmanager
def held(bench: RouterBench, *nodes: NodeTwin) -> Iterator[None]:
    """The tenant's share of these nodes, held by what another router sent them."""
    with ExitStack() as shares:
        for node in nodes:
            shares.enter_context(node.shares.held(bench.tenant.tenant_id))
        yield


def streamed(bench: RouterBench, stream: bool) -> None:
    for node in bench.nodes:
        if stream:
            node.stream()


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_another_node_serves_what_one_has_no_room_for(two: RouterBench, stream: bool) -> None:
    streamed(two, stream)
    for full, free in (two.nodes, reversed(two.nodes)):
        with held(two, full):
            assert (await two.run(prompt(stream=stream))).started.status == 200
        assert len(free.requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "stream"])
async def test_a_tenant_that_holds_its_share_of_every_node_is_told_to_come_back_with_a_receipt(
    two: RouterBench, stream: bool
) -> None:
    streamed(two, stream)
    with held(two, *two.nodes):
        answer = await two.run(prompt(stream=stream))
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (429, "overloaded")
    assert (answer.started.headers["Retry-After"], answer.started.retry_seconds) == ("1", 1)
    receipt = two.only_receipt()
    assert len([event for event in receipt.events if isinstance(event, UpstreamVerified)]) == 2
    assert (aborts(receipt), receipt.returned.body_hash) == (["upstream_failed"], digest(answer.body))
    assert [node.requests for node in two.nodes] == [[], []]


async def test_of_more_than_three_nodes_three_are_asked(tmp_path: Path) -> None:
    async with router_bench(tmp_path, nodes=4, routing=SETTINGS) as bench:
        for node in bench.nodes:
            node.shares = TenantShares(1)
        with held(bench, *bench.nodes):
            answer = await bench.run(prompt())
        assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (429, "overloaded")
        receipt = bench.only_receipt()
        assert len({event.session_id for event in receipt.events if isinstance(event, UpstreamVerified)}) == 3
        assert [node.requests for node in bench.nodes] == [[]] * 4


async def test_what_no_node_had_room_for_costs_the_tenant_nothing(two: RouterBench) -> None:
    two.tenant = replace(two.tenant, limits=Limits(tokens_per_day=10_000))
    with held(two, *two.nodes):
        assert (await two.run(prompt(max_tokens=100))).started.status == 429
    assert two.quotas.counted(two.tenant.tenant_id).day_tokens == 0


async def test_anthropics_clients_are_told_in_their_form(two: RouterBench) -> None:
    with held(two, *two.nodes):
        answer = await two.run(prompt(max_tokens=1), endpoint=endpoints.MESSAGES)
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (529, "overloaded_error")


async def test_what_one_tenant_holds_keeps_no_other_out_and_opens_no_breaker(two: RouterBench) -> None:
    mine = two.tenant
    with held(two, *two.nodes):
        for _ in range(3 * SETTINGS.breaker_failures):
            assert (await two.run(prompt())).started.status == 429
        two.tenant = OTHER_TENANT
        assert (await two.run(prompt())).started.status == 200
        two.tenant = mine
    assert (await two.run(prompt())).started.status == 200
    assert two.metrics.routing.breakers.numbers["errors"] == 0


async def test_a_tenant_has_its_share_of_a_node_whichever_requests_come_at_once(two: RouterBench) -> None:
    for node in two.nodes:
        node.goes_on = asyncio.Event()
    async with asyncio.timeout(PATIENCE_SECONDS):
        asking = [asyncio.create_task(two.run(prompt())) for _ in range(6)]
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().started.status for task in done} == {429}
        for node in two.nodes:
            assert node.goes_on is not None
            node.goes_on.set()
        statuses = [(await task).started.status for task in asking]
    assert statuses.count(200) >= 2
    assert [node.most_running for node in two.nodes] == [1, 1]
