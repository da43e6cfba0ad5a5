"""More requests than the nodes have room for: they wait and are served in turn, or are refused with a receipt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from teemesh.registry.v1 import registry_pb2

from libs import jcs
from libs.aci import receipt as receipts
from libs.aci.encoding import digest
from libs.aci.receipt_events import UpstreamFailed
from libs.policy.constraints import Constraints, TenantConstraints
from libs.policy.revoked import Revoked
from libs.transparency.leaf import Kind
from services.registry.sessions import draft_session
from services.router.admission.tenants import Tenant
from services.router.exchange.course import Started
from services.router.routing.settings import RoutingSettings
from tests.fakes.leases import MODEL
from tests.fakes.ledgers import OTHER_TENANT, TENANT
from tests.fakes.nodes import NodeTwin
from tests.fakes.routers import PATIENCE_SECONDS, Answer, RouterBench, aborts, prompt, router_bench

CAPACITY = 4


@asynccontextmanager
async def crowded(folder: Path, routing: RoutingSettings | None = None) -> AsyncIterator[tuple[RouterBench, NodeTwin]]:
    """One node, as busy as it can be with answers that it holds back."""
    async with router_bench(folder, routing=routing) as bench:
        (node,) = bench.nodes
        node.goes_on = asyncio.Event()
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            for _ in range(CAPACITY):
                tasks.create_task(bench.run(prompt()))
            await until(lambda: node.running == CAPACITY)
            yield bench, node
            node.goes_on.set()


async def until(claim: Callable[[], bool]) -> None:
    while not claim():  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0)


def waiting(bench: RouterBench) -> int:
    return bench.metrics.routing.waiting.numbers[""]


async def until_waiting(bench: RouterBench, number: int) -> None:
    """So many wait, and each has been told already that there is no room."""
    await until(lambda: waiting(bench) == number)
    await until(lambda: not bench.upstreams.queue._told)


async def asked_by(bench: RouterBench, tenant: Tenant, body: bytes) -> None:
    async for _ in bench.exchanges.run(replace(bench.request(body), tenant=tenant)):
        pass


async def refused(bench: RouterBench) -> tuple[int, str, str]:
    """Ask, and return status, type, and the reason in the receipt."""
    answer = await bench.run(prompt(n=1))
    return (*told(answer), reason_of(bench, answer))


def told(answer: Answer) -> tuple[int, str]:
    return answer.started.status, json.loads(answer.body)["error"]["type"]


def reason_of(bench: RouterBench, answer: Answer) -> str:
    """The reason in the one receipt of a refusal."""
    (document,) = [each for each in bench.ledger.of(Kind.RECEIPT) if each["receipt_id"] == answer.started.receipt_id]
    receipt = receipts.verify_receipt(jcs.dumps(dict(document)), bench.workload.keyset)
    assert receipt.returned.body_hash == digest(answer.body)
    assert isinstance(receipt.upstream, UpstreamFailed)
    return receipt.upstream.reason


async def test_all_are_answered_each_with_a_receipt_and_the_node_never_has_more_than_it_can(tmp_path: Path) -> None:
    async with crowded(tmp_path) as (bench, node):
        bodies = [prompt(n=number) for number in range(30)]
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(bench.run(body)) for body in bodies]
            await until_waiting(bench, 30)
            assert len(node.requests) == CAPACITY
            assert node.goes_on is not None
            node.goes_on.set()
    assert {answer.result().started.status for answer in answers} == {200}
    assert [request.body for request in node.requests[CAPACITY:]] == bodies
    assert len(bench.ledger.of(Kind.RECEIPT)) == CAPACITY + 30
    assert (node.most_running, waiting(bench)) == (CAPACITY, 0)
    assert bench.upstreams._occupancy.own() == {node.lease.certificate.spiffe_id: 0}


async def test_a_tenant_with_many_requests_waits_in_turn_with_one_that_has_few(tmp_path: Path) -> None:
    async with crowded(tmp_path) as (bench, node), asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(asked_by(bench, TENANT, prompt(n=number)))
        await until_waiting(bench, 20)
        for number in range(2):
            tasks.create_task(asked_by(bench, OTHER_TENANT, prompt(n=number)))
        await until_waiting(bench, 22)
        assert node.goes_on is not None
        node.goes_on.set()
    order = [request.tenant_id for request in node.requests[CAPACITY:]]
    assert order[:4] == [TENANT.tenant_id, OTHER_TENANT.tenant_id] * 2
    assert len(order) == 22


async def test_who_finds_no_room_to_wait_is_refused_with_a_receipt_and_told_when_to_come_back(tmp_path: Path) -> None:
    async with crowded(tmp_path, RoutingSettings(queue_length=0, queue_seconds=7.5)) as (bench, node):
        answer = await bench.run(prompt(n=1))
        assert told(answer) == (429, "overloaded")
        assert answer.started.headers == {"Retry-After": "8"}
        assert len(node.requests) == CAPACITY
        assert reason_of(bench, answer) == "overloaded"


async def test_who_waits_in_vain_is_refused_with_a_receipt(tmp_path: Path) -> None:
    async with crowded(tmp_path, RoutingSettings(queue_seconds=0.05)) as (bench, _):
        assert await refused(bench) == (429, "overloaded", "overloaded")
        assert waiting(bench) == 0


async def test_who_waits_when_the_router_stops_is_refused_at_once_with_a_receipt_and_what_runs_ends(
    tmp_path: Path,
) -> None:
    async with crowded(tmp_path) as (bench, node), asyncio.TaskGroup() as tasks:
        waiter = tasks.create_task(bench.run(prompt(n=1)))
        await until_waiting(bench, 1)
        bench.upstreams.queue.close()
        answer = await waiter
        assert told(answer) == (503, "service_unavailable")
        assert reason_of(bench, answer) == "router_stopping"
        assert await refused(bench) == (503, "service_unavailable", "router_stopping"), "nobody begins to wait"
        assert (waiting(bench), len(node.requests), node.running) == (0, CAPACITY, CAPACITY)
        assert node.goes_on is not None
        node.goes_on.set()
        await until(lambda: not any(bench.upstreams._occupancy.own().values()))
        assert (await bench.run(prompt(n=2))).started.status == 200, "who finds room is served while there is time"


async def test_who_has_no_time_to_wait_is_refused_while_there_is_time_to_say_so(tmp_path: Path) -> None:
    async with crowded(tmp_path) as (bench, _):
        answer = await bench.run(prompt(n=1), seconds=6.05)
        assert told(answer) == (429, "overloaded")
    assert bench.metrics.routing.turned_away.numbers["waited"] == 1


async def test_a_client_that_leaves_while_it_waits_leaves_one_receipt_and_nothing_else(tmp_path: Path) -> None:
    async with crowded(tmp_path) as (bench, node), bench.issuance.recording():
        leaving, staying = (asyncio.create_task(bench.run(prompt(n=number))) for number in range(2))
        await until_waiting(bench, 2)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        await bench.logged()
        receipt = bench.only_receipt()
        assert aborts(receipt) == ["client_disconnected"]
        assert receipt.upstream == UpstreamFailed(True, MODEL, "not_forwarded")
        assert waiting(bench) == 1
        assert node.goes_on is not None
        node.goes_on.set()
        assert (await staying).started.status == 200
    assert len(node.requests) == CAPACITY + 1
    assert not bench.upstreams.queue._lines


Happening = Callable[[RouterBench], None]


def _the_tenant_is_revoked(bench: RouterBench) -> None:
    bench.member.policy.revoked = Revoked(tenants=frozenset({TENANT.tenant_id}))


def _the_policy_goes_stale(bench: RouterBench) -> None:
    bench.member.policy.fresh = False


def _the_model_is_withdrawn(bench: RouterBench) -> None:
    bench.member.policy.models = {}


def _the_tenant_is_kept_to_a_region(bench: RouterBench) -> None:
    abroad = TenantConstraints(regions=frozenset({"eu-1"}))
    bench.member.policy.constraints = Constraints(by_tenant={TENANT.tenant_id: abroad})


def _the_node_is_drained(bench: RouterBench) -> None:
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(draining=True)))


def _the_registry_ends_it(bench: RouterBench) -> None:
    bench.upstreams.take(bench.snapshot())


@pytest.mark.parametrize(
    ("happens", "refusal"),
    [
        (_the_tenant_is_revoked, (403, "tenant_revoked")),
        (_the_policy_goes_stale, (503, "service_unavailable")),
        (_the_model_is_withdrawn, (404, "not_found_error")),
        (_the_tenant_is_kept_to_a_region, (503, "tenant_constraints_unmet")),
        (_the_node_is_drained, (503, "upstream_verification_failed")),
        (_the_registry_ends_it, (503, "upstream_verification_failed")),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else value[-1],
)
async def test_whoever_waited_is_judged_as_if_they_came_now(
    tmp_path: Path, happens: Happening, refusal: tuple[int, str]
) -> None:
    async with crowded(tmp_path) as (bench, node):
        late = asyncio.create_task(bench.run(prompt(n=1)))
        await until_waiting(bench, 1)
        happens(bench)
        assert node.goes_on is not None
        node.goes_on.set()
        answer = await late
        assert told(answer) == refusal
        assert ("POLICY_STALE" in answer.body.decode()) is (happens is _the_policy_goes_stale)
        assert len(node.requests) == CAPACITY
    assert len(bench.ledger.of(Kind.RECEIPT)) == CAPACITY + 1


async def test_the_turn_of_a_revoked_tenant_takes_no_room(tmp_path: Path) -> None:
    async with crowded(tmp_path) as (bench, node):
        late = asyncio.create_task(bench.run(prompt(n=1)))
        await until_waiting(bench, 1)
        reached: list[bool] = []
        bench.peer_of(node).meanwhile = lambda: reached.append(True)
        _the_tenant_is_revoked(bench)
        bench.upstreams.queue.news((MODEL,))
        assert told(await late) == (403, "tenant_revoked")
        assert not reached


@pytest.mark.parametrize("happens", [_the_node_is_drained, _the_registry_ends_it])
async def test_who_waits_for_a_node_that_leaves_is_told_at_once(tmp_path: Path, happens: Happening) -> None:
    async with crowded(tmp_path) as (bench, node):
        late = asyncio.create_task(bench.run(prompt(n=1)))
        await until_waiting(bench, 1)
        happens(bench)
        assert told(await late) == (503, "upstream_verification_failed")
        assert node.running == CAPACITY


async def test_a_pin_waits_for_its_node_and_is_served_by_no_other(tmp_path: Path) -> None:
    async with crowded(tmp_path) as (bench, node):
        session = draft_session(node.lease, node.target).session_id
        pinned = asyncio.create_task(bench.run(prompt(provider={"aci_session_ids": [session]})))
        await until_waiting(bench, 1)
        assert node.goes_on is not None
        node.goes_on.set()
        assert (await pinned).started.status == 200


async def test_a_node_that_joins_is_news_to_those_who_wait(tmp_path: Path) -> None:
    async with router_bench(tmp_path, nodes=2) as bench:
        first, second = bench.nodes
        bench.upstreams.take(bench.snapshot(first.provider()))
        first.goes_on = asyncio.Event()
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            for _ in range(CAPACITY + 1):
                tasks.create_task(bench.run(prompt()))
            await until_waiting(bench, 1)
            bench.upstreams.take(bench.snapshot(first.provider(), second.provider()))
            await bench.upstreams.verify()
            await until(lambda: len(second.requests) == 1)
            first.goes_on.set()


@pytest.mark.parametrize("changes", [{"load": registry_pb2.Load(running_requests=3)}, {}], ids=["less", "none"])
async def test_a_report_of_room_is_news_to_those_who_wait(bench: RouterBench, changes: dict[str, Any]) -> None:
    """Other routers' requests fill the node, and end."""
    (node,) = bench.nodes
    bench.upstreams.take(bench.snapshot(node.provider(load=registry_pb2.Load(running_requests=CAPACITY))))
    late = asyncio.create_task(bench.run(prompt()))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await until_waiting(bench, 1)
        bench.upstreams.take(bench.snapshot(node.provider(**changes)))
        assert (await late).started.status == 200


async def test_one_whose_node_fails_waits_for_another_and_is_told_of_the_failure_if_there_is_no_room(
    tmp_path: Path,
) -> None:
    async with router_bench(tmp_path, nodes=2, routing=RoutingSettings(queue_seconds=0.1)) as bench:
        full, failing = bench.nodes
        failing.refuses = True
        full.goes_on = asyncio.Event()
        bench.upstreams.take(bench.snapshot(full.provider()))
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            for _ in range(CAPACITY):
                tasks.create_task(bench.run(prompt()))
            await until(lambda: full.running == CAPACITY)
            bench.upstreams.take(bench.snapshot(full.provider(), failing.provider()))
            await bench.upstreams.verify()
            answer = await bench.run(prompt(n=1))
            assert told(answer) == (502, "upstream_error")
            full.goes_on.set()


async def test_a_head_that_was_taken_counts_for_one_request_only(tmp_path: Path) -> None:
    """A client that stops reading holds its place until it leaves; then the next is served."""
    async with crowded(tmp_path) as (bench, node):
        node.stream()
        assert node.goes_on is not None
        node.goes_on.set()
        exchange = bench.exchanges.run(bench.request(prompt(stream=True)))
        assert isinstance(await anext(exchange), Started)
        (own,) = bench.upstreams._occupancy.own().values()
        assert own >= 1
        await exchange.aclose()
    assert bench.upstreams._occupancy.own() == {node.lease.certificate.spiffe_id: 0}
