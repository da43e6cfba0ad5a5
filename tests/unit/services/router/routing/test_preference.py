"""Which of the nodes that may serve is chosen: breakers, room and what was asked before are preferences among them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from teemesh.registry.v1 import registry_pb2 as pb

from libs.aci.endpoints import CHAT
from services.registry.sessions import draft_session
from services.router.errors import SessionNotAccepted, UpstreamFailed, UpstreamVerificationFailed
from services.router.prompt import Constraints
from services.router.routing.hop import Begun, Ended
from services.router.routing.preference import NodesFull
from services.router.routing.settings import RoutingSettings
from tests.fakes.leases import MODEL
from tests.fakes.ledgers import OTHER_TENANT, TENANT
from tests.fakes.nodes import NodeTwin
from tests.fakes.routers import RouterBench, router_bench

SETTINGS = RoutingSettings(breaker_failures=2, breaker_seconds=10.0, affinity_slack=0.5)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def five(tmp_path: Path, clock: Clock) -> AsyncIterator[RouterBench]:
    async with router_bench(tmp_path, nodes=5, routing=SETTINGS, monotonic=clock) as running:
        yield running


def name_of(node: NodeTwin) -> str:
    return node.lease.certificate.spiffe_id


def choose(
    bench: RouterBench,
    *tried: NodeTwin,
    beginning: bytes = b"",
    constraints: Constraints | None = None,
    tenant: str = TENANT.tenant_id,
) -> str:
    excluded = frozenset(name_of(node) for node in tried)
    chosen = bench.upstreams.choose(MODEL, CHAT, constraints or Constraints(), tenant, excluded, beginning=beginning)
    return chosen.candidate.spiffe_id


def chosen_often(bench: RouterBench, times: int = 60) -> set[str]:
    return {choose(bench) for _ in range(times)}


def tell(bench: RouterBench, *loads: int, **changes: object) -> None:
    """Have every node report so many requests of a capacity of 4."""
    for node, load in zip(bench.nodes, loads, strict=True):
        provider = node.provider(load=pb.Load(running_requests=load))
        bench.upstreams.take(pb.WatchResponse(changed=provider))


def break_open(bench: RouterBench, *nodes: NodeTwin) -> None:
    for node in nodes:
        for _ in range(2):
            with suppress(UpstreamFailed), bench.upstreams.breakers.attempt(name_of(node), MODEL, "t", streams=True):
                raise UpstreamFailed("broke off")


async def test_a_node_that_keeps_failing_is_avoided_though_it_is_idle(five: RouterBench, clock: Clock) -> None:
    tell(five, 0, 3, 3, 3, 3)
    break_open(five, five.nodes[0])
    assert chosen_often(five) == {name_of(node) for node in five.nodes[1:]}
    clock.now += 10.0
    assert chosen_often(five) == {name_of(five.nodes[0])}, "it is tried again"


async def test_where_all_are_avoided_the_least_busy_serves(five: RouterBench) -> None:
    tell(five, 3, 2, 1, 2, 3)
    break_open(five, *five.nodes)
    assert chosen_often(five) == {name_of(five.nodes[2])}


async def test_a_node_that_one_tenant_avoids_is_given_all_others_requests(five: RouterBench) -> None:
    tell(five, 0, 3, 3, 3, 3)
    breakers, first, greedy = five.upstreams.breakers, name_of(five.nodes[0]), TENANT.tenant_id
    for _ in range(20):
        with breakers.attempt(first, MODEL, greedy, streams=True) as attempt:
            for step in (Begun(502, "application/json"), Ended(None)):
                breakers.note(attempt, step)
    assert chosen_often(five) == {name_of(node) for node in five.nodes[1:]}
    assert choose(five, tenant=OTHER_TENANT.tenant_id) == first


async def test_where_those_that_are_not_avoided_are_full_a_request_waits_for_them(five: RouterBench) -> None:
    tell(five, 0, 4, 4, 4, 4)
    break_open(five, five.nodes[0])
    with pytest.raises(NodesFull):
        choose(five)


Withdrawing = Callable[[RouterBench, NodeTwin], None]


def _drain(bench: RouterBench, node: NodeTwin) -> None:
    bench.upstreams.take(pb.WatchResponse(changed=node.provider(draining=True)))


def _end(bench: RouterBench, node: NodeTwin) -> None:
    bench.upstreams.take(pb.WatchResponse(ended=name_of(node)))


def _disconnect(bench: RouterBench, node: NodeTwin) -> None:
    bench.peer_of(node).known = None


def _withdraw_the_model(bench: RouterBench, node: NodeTwin) -> None:
    bench.member.policy.models = {MODEL: frozenset({"88" * 32})}


@pytest.mark.parametrize("withdraw", [_drain, _end, _disconnect, _withdraw_the_model])
async def test_no_preference_leads_to_a_node_that_may_not_serve(five: RouterBench, withdraw: Withdrawing) -> None:
    """All others are avoided, and were tried; the prompt was there before; it is idle, too."""
    beginning = b"what was asked before"
    node, others = has_served(five, beginning)
    withdraw(five, node)
    with pytest.raises(UpstreamVerificationFailed) as refused:
        choose(five, *others, beginning=beginning)
    assert refused.value.reason == "UPSTREAM_VERIFICATION_FAILED"


@pytest.mark.parametrize("withdraw", [_drain, _end, _disconnect])
async def test_those_that_are_avoided_are_preferred_to_one_that_may_not_serve(
    five: RouterBench, withdraw: Withdrawing
) -> None:
    beginning = b"what was asked before"
    node, others = has_served(five, beginning)
    withdraw(five, node)
    assert {choose(five, beginning=beginning) for _ in range(60)} <= {name_of(other) for other in others}


def has_served(bench: RouterBench, beginning: bytes) -> tuple[NodeTwin, list[NodeTwin]]:
    """Return the node that has served what begins so, and the others, all of which are avoided now."""
    node = next(each for each in bench.nodes if name_of(each) == choose(bench, beginning=beginning))
    others = [other for other in bench.nodes if other is not node]
    break_open(bench, *others)
    return node, others


async def test_a_pin_is_obeyed_whatever_is_preferred(five: RouterBench) -> None:
    beginning = b"what was asked before"
    preferred = choose(five, beginning=beginning)
    pinned = next(node for node in five.nodes if name_of(node) != preferred)
    session = draft_session(pinned.lease, pinned.target).session_id
    pins = Constraints(verified=True, session_ids=frozenset({session}))
    break_open(five, pinned)
    assert choose(five, beginning=beginning, constraints=pins) == name_of(pinned)
    tell(five, *(4 if node is pinned else 0 for node in five.nodes))
    with pytest.raises(NodesFull):
        choose(five, beginning=beginning, constraints=pins)
    with pytest.raises(SessionNotAccepted):
        choose(five, pinned, constraints=pins)


async def test_a_node_that_was_tried_is_not_chosen_for_what_it_has_served(five: RouterBench) -> None:
    first = choose(five, beginning=b"x")
    tried = next(node for node in five.nodes if name_of(node) == first)
    assert choose(five, tried, beginning=b"x") != first


async def test_turns_of_a_conversation_go_to_one_node_while_it_is_hardly_busier(five: RouterBench) -> None:
    first = choose(five, beginning=b"x")
    place = [name_of(node) for node in five.nodes].index(first)
    for own, others, stays in ((2, 0, True), (3, 0, False), (3, 1, True), (0, 0, True)):
        tell(five, *(own if number == place else others for number in range(5)))
        assert ({choose(five, beginning=b"x") for _ in range(20)} == {first}) == stays
    tell(five, *(4 if number == place else 3 for number in range(5)))
    assert choose(five, beginning=b"x") != first, "it is full"


async def test_a_node_that_is_avoided_keeps_no_conversation(five: RouterBench, clock: Clock) -> None:
    first = choose(five, beginning=b"x")
    break_open(five, next(node for node in five.nodes if name_of(node) == first))
    second = choose(five, beginning=b"x")
    assert second != first
    assert {choose(five, beginning=b"x") for _ in range(10)} == {second}
    clock.now += 10.0
    assert choose(five, beginning=b"x") == first


async def test_conversations_are_spread_over_the_nodes(five: RouterBench) -> None:
    counts = Counter(choose(five, beginning=f"conversation {number}".encode()) for number in range(200))
    assert len(counts) == 5


async def test_a_node_is_given_no_more_than_its_capacity(five: RouterBench) -> None:
    with ExitStack() as running:
        for _ in range(20):
            chosen = five.upstreams.choose(MODEL, CHAT, Constraints(), TENANT.tenant_id, frozenset())
            running.enter_context(five.upstreams.using(chosen))
        with pytest.raises(NodesFull):
            choose(five)
        assert set(five.upstreams._occupancy.own().values()) == {4}
    assert len(chosen_often(five)) == 5


async def test_a_node_is_given_as_much_more_as_is_configured(tmp_path: Path) -> None:
    async with router_bench(tmp_path, routing=RoutingSettings(queue_factor=1.5)) as bench:
        with ExitStack() as running:
            for _ in range(6):
                upstream = bench.upstreams.choose(MODEL, CHAT, Constraints(), TENANT.tenant_id, frozenset())
                running.enter_context(bench.upstreams.using(upstream))
            with pytest.raises(NodesFull):
                choose(bench)


async def test_a_report_of_what_has_ended_does_not_keep_a_node_full(five: RouterBench) -> None:
    """Its next report is seconds away; with none of those four, it has room now."""
    with ExitStack() as running:
        for node in five.nodes:
            upstream = next(u for u in five.upstreams._live() if u.candidate.spiffe_id == name_of(node))
            for _ in range(4):
                running.enter_context(five.upstreams.using(upstream))
    tell(five, 4, 4, 4, 4, 4)
    assert len(chosen_often(five)) == 5
    for node in five.nodes:
        later = node.provider(load=pb.Load(running_requests=4))
        later.lease_until_ms += 5000
        five.upstreams.take(pb.WatchResponse(changed=later))
    with pytest.raises(NodesFull):
        choose(five)


async def test_what_the_registry_tells_again_is_no_new_report(five: RouterBench) -> None:
    upstream = five.upstreams.choose(MODEL, CHAT, Constraints(), TENANT.tenant_id, frozenset())
    name = upstream.candidate.spiffe_id
    place = [name_of(node) for node in five.nodes].index(name)
    with ExitStack() as running:
        for _ in range(4):
            running.enter_context(five.upstreams.using(upstream))
        tell(five, *(4 if number == place else 0 for number in range(5)))
    for _ in range(2):
        tell(five, *(4 if number == place else 0 for number in range(5)))
    assert five.upstreams._occupancy.busy(name) == 0


async def test_nodes_that_come_and_go_leave_nothing(five: RouterBench) -> None:
    chance = random.Random(5)  # noqa: S311 - a seed makes the test repeat
    for _ in range(200):
        node = chance.choice(five.nodes)
        break_open(five, node)
        _end(five, node)
        if chance.random() < 0.5:
            five.upstreams.take(pb.WatchResponse(changed=node.provider()))
            await five.upstreams.verify()
    five.upstreams.take(five.snapshot())
    upstreams = five.upstreams
    assert not upstreams.breakers._breakers
    assert not upstreams._occupancy._places
    assert not upstreams._affinity._models
    assert not upstreams._ranking._ranked
    assert sum(five.metrics.routing.breakers.numbers.values()) == 0
