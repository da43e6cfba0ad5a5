"""A node that dies, refuses or falls silent: another is asked before the first byte of an answer, and never after."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from teemesh.registry.v1 import registry_pb2

from libs.aci.encoding import digest
from libs.aci.receipt_events import UpstreamVerified
from libs.policy.constraints import VERIFIED_ONLY, Constraints, TenantConstraints
from libs.transparency.leaf import Kind
from services.registry.sessions import draft_session
from services.router.routing.settings import RoutingSettings
from tests.fakes.leases import MODEL, node_lease
from tests.fakes.ledgers import OTHER_TENANT, TENANT
from tests.fakes.nodes import BUFFERED, STREAMED, NodeTwin
from tests.fakes.routers import PATIENCE_SECONDS, Answer, RouterBench, aborts, prompt, router_bench, until_waiting

SETTINGS = RoutingSettings(breaker_failures=2, first_byte_seconds=0.3, idle_seconds=0.3)


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[RouterBench]:
    """Two nodes, of which the first is asked first."""
    async with router_bench(tmp_path, nodes=2, routing=SETTINGS) as bench:
        first, second = bench.nodes
        busier = registry_pb2.Load(running_requests=2)
        bench.upstreams.take(bench.snapshot(first.provider(), second.provider(load=busier)))
        yield bench


def asked(bench: RouterBench) -> list[int]:
    return [len(node.requests) for node in bench.nodes]


def session_of(node: NodeTwin) -> str:
    return draft_session(node.lease, node.target).session_id


def error_type(answer: Answer) -> str:
    value: str = json.loads(answer.body)["error"]["type"]
    return value


def is_avoided(bench: RouterBench, node: NodeTwin, tenant_id: str = TENANT.tenant_id) -> bool:
    return not bench.upstreams.breakers.admits(node.lease.certificate.spiffe_id, tenant_id)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_node_that_dies_before_its_answer_begins_is_replaced(two: RouterBench, stream: bool) -> None:
    first, second = two.nodes
    first.waits_before_head = True
    for node in two.nodes:
        if stream:
            node.stream()
    running = asyncio.create_task(two.run(prompt(stream=stream)))
    await until_waiting(first.waiting)
    await two.servers[0].stop(None)
    answer = await running
    assert (answer.started.status, answer.body) == (200, b"".join(STREAMED if stream else BUFFERED))
    receipt = two.only_receipt()
    reached = [event for event in receipt.events if isinstance(event, UpstreamVerified)]
    assert [event.session_id for event in reached] == [session_of(first), session_of(second)]
    assert receipt.returned.body_hash == digest(answer.body)
    assert aborts(receipt) == []


async def test_a_node_that_is_gone_was_handed_nothing(two: RouterBench) -> None:
    await two.servers[0].stop(None)
    two.peer_of(two.nodes[0]).reachable = False
    assert (await two.run(prompt())).started.status == 200
    receipt = two.only_receipt()
    assert receipt.upstream == UpstreamVerified(True, MODEL, session_of(two.nodes[1]))
    assert len([event for event in receipt.events if isinstance(event, UpstreamVerified)]) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at", [0, 1], ids=["after the head", "after the first byte"])
async def test_a_node_that_breaks_off_is_not_replaced(two: RouterBench, stream: bool, at: int) -> None:
    first = two.nodes[0]
    if stream:
        first.stream()
    first.breaks_at = at
    answer = await two.run(prompt(stream=stream))
    assert asked(two) == [1, 0]
    if stream:
        assert answer.started.status == 200
        assert answer.body.startswith(b"".join(STREAMED[:at]))
        assert b'"type":"upstream_error"' in answer.parts[-1]
    else:
        assert (answer.started.status, error_type(answer)) == (502, "upstream_error")
    receipt = two.only_receipt()
    assert (aborts(receipt), receipt.returned.body_hash) == (["upstream_failed"], digest(answer.body))


async def test_a_stream_that_does_not_begin_is_another_nodes_in_time(two: RouterBench) -> None:
    first, second = two.nodes
    first.waits_before_head = True
    second.stream()
    answer = await two.run(prompt(stream=True))
    assert (answer.started.status, answer.body) == (200, b"".join(STREAMED))
    await until_waiting(first.left)
    assert aborts(two.only_receipt()) == []


async def test_a_buffered_answer_may_take_all_of_its_time(two: RouterBench) -> None:
    """Nothing of it comes before all of it is there, so silence says nothing."""
    first = two.nodes[0]
    first.goes_on = asyncio.Event()
    asyncio.get_running_loop().call_later(2 * SETTINGS.first_byte_seconds, first.goes_on.set)
    assert (await two.run(prompt())).started.status == 200
    assert asked(two) == [1, 0]


@pytest.mark.parametrize("at", [0, 1], ids=["after the head", "after the first byte"])
async def test_a_stream_that_stalls_ends_with_an_error_and_one_receipt(two: RouterBench, at: int) -> None:
    first = two.nodes[0]
    first.stream()
    first.waits_at = at
    answer = await two.run(prompt(stream=True))
    assert answer.body.startswith(b"".join(STREAMED[:at]))
    assert b'"type":"upstream_error"' in answer.parts[-1]
    assert b"silent for 0.3 s" in answer.parts[-1]
    await until_waiting(first.left)
    assert asked(two) == [1, 0]
    receipt = two.only_receipt()
    assert (aborts(receipt), receipt.returned.body_hash) == (["upstream_failed"], digest(answer.body))
    assert two.ledger.of(Kind.AMENDMENT) == []


async def test_a_stream_whose_node_says_that_its_engine_works_on_is_waited_for(tmp_path: Path) -> None:
    """By chunks that are empty: the stream gives nothing for longer than a node may be silent, and breaks nothing."""
    async with router_bench(tmp_path, routing=replace(SETTINGS, idle_seconds=2.0)) as bench:
        (node,) = bench.nodes
        node.silent_seconds = 0.6
        node.stream(STREAMED[0][:20], b"", STREAMED[0][20:], *[b""] * 4, *STREAMED[1:], b"")
        answer = await bench.run(prompt(stream=True))
        assert (answer.started.status, answer.body) == (200, b"".join(STREAMED))
        assert b"" not in answer.parts
        receipt = bench.only_receipt()
        assert (aborts(receipt), receipt.returned.body_hash) == ([], digest(answer.body))


async def test_a_buffered_answer_that_stalls_is_an_error_with_one_receipt(two: RouterBench) -> None:
    first = two.nodes[0]
    first.waits_at = 1
    answer = await two.run(prompt())
    assert (answer.started.status, error_type(answer)) == (502, "upstream_error")
    assert (aborts(two.only_receipt()), asked(two)) == (["upstream_failed"], [1, 0])


async def test_three_nodes_are_tried_and_no_more(tmp_path: Path) -> None:
    async with router_bench(tmp_path, nodes=5) as bench:
        for node in bench.nodes:
            node.refuses = True
        answer = await bench.run(prompt())
        assert (answer.started.status, error_type(answer)) == (502, "upstream_error")
        assert sorted(asked(bench)) == [0, 0, 1, 1, 1]
        receipt = bench.only_receipt()
        assert len([event for event in receipt.events if isinstance(event, UpstreamVerified)]) == 3


@pytest.mark.parametrize("fails", ["refuses", "breaks off", "stalls", "forges", "fails with an answer"])
async def test_a_node_that_fails_again_and_again_is_asked_no_more(two: RouterBench, fails: str) -> None:
    first = two.nodes[0]
    first.refuses, first.forges = fails == "refuses", fails == "forges"
    first.breaks_at = 1 if fails == "breaks off" else None
    first.waits_at = 1 if fails == "stalls" else None
    first.status = 502 if fails == "fails with an answer" else 200
    for _ in range(2):
        assert not is_avoided(two, first)
        await two.run(prompt())
    assert is_avoided(two, first)
    assert (await two.run(prompt())).body == b"".join(BUFFERED)
    assert asked(two)[0] == 2
    is_alone = fails == "fails with an answer"
    assert is_avoided(two, first, OTHER_TENANT.tenant_id) is not is_alone
    assert two.metrics.routing.breakers.numbers["one_tenant" if is_alone else "errors"] == 1


@pytest.mark.parametrize("anothers", [True, False], ids=["answered meanwhile", "hanging for all"])
async def test_one_tenants_overruns_open_only_what_answers_nobody_else(tmp_path: Path, anothers: bool) -> None:
    now = 1000.0
    async with router_bench(tmp_path, routing=SETTINGS, monotonic=lambda: now) as bench:
        (node,) = bench.nodes
        held = node.goes_on = asyncio.Event()
        asking = [asyncio.create_task(bench.run(prompt())) for _ in range(3)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while node.running < 3:  # noqa: ASYNC110 - gRPC tells nobody.
                await asyncio.sleep(0.01)
        bench.tenant = OTHER_TENANT
        if anothers:
            node.goes_on = None
            assert (await bench.run(prompt())).started.status == 200
        now += 2 * SETTINGS.first_byte_seconds
        node.refuses_as_too_slow = True
        held.set()
        assert {(await task).started.status for task in asking} == {502}
        assert is_avoided(bench, node) is not anothers


@pytest.mark.parametrize("turns_out", ["not to be for this tenant", "to have renewed its key"])
async def test_a_node_that_may_not_serve_a_request_any_more_has_not_failed(two: RouterBench, turns_out: str) -> None:
    first, peer, policy = two.nodes[0], two.peer_of(two.nodes[0]), two.member.policy
    abroad = Constraints(default=TenantConstraints(regions=frozenset({"eu-1"})))
    for _ in range(4):
        if turns_out == "to have renewed its key":
            peer.renewed = node_lease("n0", key="second")
        else:
            peer.meanwhile = lambda: setattr(policy, "constraints", abroad)
        await two.run(prompt())
        policy.constraints, peer.renewed, peer.known = VERIFIED_ONLY, None, first.lease
    assert asked(two)[0] == 0
    assert not is_avoided(two, first)


@pytest.mark.parametrize("does", ["asks wrongly", "leaves", "has no time", "is too large"])
async def test_no_client_makes_a_node_be_avoided(two: RouterBench, does: str) -> None:
    first = two.nodes[0]
    first.status = 400 if does == "asks wrongly" else 200
    first.refuses_as_too_large = does == "is too large"
    for _ in range(4):
        if does == "leaves":
            first.waits_before_head = True
            client = asyncio.create_task(two.run(prompt()))
            await until_waiting(first.waiting)
            first.waiting.clear()
            client.cancel()
            await asyncio.gather(client, return_exceptions=True)
        elif does == "has no time":
            first.waits_before_head = True
            await two.run(prompt(), seconds=6.05)
        else:
            await two.run(prompt())
    assert asked(two)[0] == 4
    assert not is_avoided(two, first)
