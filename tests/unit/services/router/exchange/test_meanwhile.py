"""What changes between the choice of a node and the moment in which it would get the prompt: it does not get it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from teemesh.registry.v1 import registry_pb2

from libs.aci.receipt_events import UpstreamFailed
from libs.policy.constraints import Constraints, TenantConstraints
from libs.policy.revoked import Revoked
from services.registry.sessions import draft_session
from tests.fakes.leases import MODEL, node_lease
from tests.fakes.ledgers import TENANT
from tests.fakes.nodes import NodeTwin
from tests.fakes.routers import RouterBench, aborts, prompt, router_bench

Happening = Callable[[RouterBench], None]


def _the_model_is_withdrawn(bench: RouterBench) -> None:
    bench.member.policy.models = {}


def _its_weights_are_withdrawn(bench: RouterBench) -> None:
    bench.member.policy.models = {MODEL: frozenset({"88" * 32})}


def _the_tenant_may_use_another_model_only(bench: RouterBench) -> None:
    _constrain(bench, TenantConstraints(models={"other": frozenset()}))


def _the_tenant_is_kept_to_a_region(bench: RouterBench) -> None:
    _constrain(bench, TenantConstraints(regions=frozenset({"eu-1"})))


def _the_tenants_evidence_must_be_younger(bench: RouterBench) -> None:
    _constrain(bench, TenantConstraints(max_evidence_age_seconds=0))


def _the_node_is_drained(bench: RouterBench) -> None:
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(draining=True)))


def _its_lease_is_shortened(bench: RouterBench) -> None:
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(lease_until_ms=1)))


def _its_session_ends(bench: RouterBench) -> None:
    """The registry's lease and the router's own appraisal go on."""
    known = bench.upstreams._known[bench.nodes[0].lease.certificate.spiffe_id]
    assert known.admitted is not None
    known.admitted = replace(known.admitted, session=replace(known.admitted.session, expires_at=1))
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider()))


def _the_registry_ends_it(bench: RouterBench) -> None:
    bench.upstreams.take(bench.snapshot())


def _the_policy_goes_stale(bench: RouterBench) -> None:
    bench.member.policy.fresh = False


def _the_tenant_is_revoked(bench: RouterBench) -> None:
    bench.member.policy.revoked = Revoked(tenants=frozenset({TENANT.tenant_id}))


def _constrain(bench: RouterBench, tenant: TenantConstraints) -> None:
    bench.member.policy.constraints = Constraints(by_tenant={TENANT.tenant_id: tenant})


_UNSUITED = (503, "upstream_verification_failed", "node_no_longer_suits")
_UNKNOWN = (404, "not_found_error", "model_not_found")
_UNMET = "tenant_constraints_unmet"


@pytest.mark.parametrize(
    ("happens", "refusal"),
    [
        (_the_model_is_withdrawn, _UNKNOWN),
        (_its_weights_are_withdrawn, _UNSUITED),
        (_the_tenant_may_use_another_model_only, _UNKNOWN),
        (_the_tenant_is_kept_to_a_region, (503, _UNMET, f"{_UNMET}: regions")),
        (_the_tenants_evidence_must_be_younger, (503, _UNMET, f"{_UNMET}: max_evidence_age_seconds")),
        (_the_node_is_drained, _UNSUITED),
        (_its_lease_is_shortened, _UNSUITED),
        (_its_session_ends, _UNSUITED),
        (_the_registry_ends_it, _UNSUITED),
        (_the_policy_goes_stale, (503, "service_unavailable", "service_unavailable")),
        (_the_tenant_is_revoked, (403, "tenant_revoked", "tenant_revoked")),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else value[-1].partition(":")[0],
)
async def test_a_prompt_goes_nowhere_that_it_may_not_go_any_more(
    bench: RouterBench, happens: Happening, refusal: tuple[int, str, str]
) -> None:
    bench.peer_of(bench.nodes[0]).meanwhile = lambda: happens(bench)
    answer = await bench.run(prompt())
    assert not bench.nodes[0].requests
    status, error_type, reason = refusal
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (status, error_type)
    assert bench.only_receipt().upstream == UpstreamFailed(True, MODEL, reason)
    assert ("POLICY_STALE" in answer.body.decode()) is (happens is _the_policy_goes_stale)


@pytest.mark.parametrize(
    ("happens", "refusal"),
    [
        (_the_model_is_withdrawn, (404, "MODEL_NOT_FOUND")),
        (_the_tenant_is_kept_to_a_region, (503, "TENANT_CONSTRAINTS_UNMET")),
        (_the_policy_goes_stale, (503, "SERVICE_UNAVAILABLE")),
        (_the_tenant_is_revoked, (403, "TENANT_REVOKED")),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else value[-1],
)
async def test_a_second_attempt_is_judged_as_the_first_was(
    two_nodes: RouterBench, happens: Happening, refusal: tuple[int, str]
) -> None:
    """The first node cannot be reached; what happened meanwhile counts before another is asked, and is what is said."""
    bench = two_nodes
    first = _idler(bench)

    def away() -> None:
        bench.peer_of(first).reachable = False
        happens(bench)

    bench.peer_of(first).meanwhile = away
    answer = await bench.run(prompt())
    assert [node.requests for node in bench.nodes] == [[], []]
    assert answer.started.status == refusal[0]
    assert _refusals(bench) == {refusal[1]: 1}
    assert ("POLICY_STALE" in answer.body.decode()) is (happens is _the_policy_goes_stale)
    assert bench.only_receipt().forwarded is None


@pytest.mark.parametrize(
    "happens",
    [_the_model_is_withdrawn, _the_tenant_is_kept_to_a_region, _the_policy_goes_stale, _the_tenant_is_revoked],
    ids=lambda value: value.__name__.strip("_"),
)
async def test_where_a_node_had_the_prompt_and_failed_that_is_said_and_no_other_gets_it(
    two_nodes: RouterBench, happens: Happening
) -> None:
    bench = two_nodes
    first = _idler(bench)
    first.refuses = True
    first.meanwhile = lambda: happens(bench)
    answer = await bench.run(prompt())
    assert [len(node.requests) for node in bench.nodes] == [1, 0]
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (502, "upstream_error")
    assert _refusals(bench) == {"ENGINE_UNAVAILABLE": 1}
    assert aborts(bench.only_receipt()) == ["upstream_failed"]


async def test_a_node_that_failed_is_not_said_to_have_got_nothing_because_the_next_did(two_nodes: RouterBench) -> None:
    """The first had the prompt: `upstream_verification_failed` would say that nobody had."""
    bench = two_nodes
    first = _idler(bench)
    first.refuses = True
    second = next(node for node in bench.nodes if node is not first)
    bench.peer_of(second).meanwhile = lambda: _the_registry_ends_it(bench)
    answer = await bench.run(prompt())
    assert [len(node.requests) for node in bench.nodes] == [1, 0]
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (502, "upstream_error")


def _idler(bench: RouterBench) -> NodeTwin:
    """Have the first of two nodes be chosen first."""
    busier = registry_pb2.Load(running_requests=1)
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(), bench.nodes[1].provider(load=busier)))
    return bench.nodes[0]


def _refusals(bench: RouterBench) -> dict[str, int]:
    """How many requests were refused for which reason, as the code knows it."""
    return dict(bench.metrics.refusals.numbers)


async def test_a_pinned_session_that_its_node_has_replaced_meanwhile_gets_no_prompt(two_nodes: RouterBench) -> None:
    """The node is genuine and verified under its next key; the client did not say that it accepts that."""
    bench = two_nodes
    first, second = bench.nodes
    pinned = draft_session(first.lease, first.target).session_id

    def renews() -> None:
        bench.peer_of(first).renewed = node_lease("n0", key="second")

    bench.peer_of(first).meanwhile = renews
    answer = await bench.run(prompt(provider={"aci_session_ids": [pinned]}))
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (412, "session_not_accepted")
    assert (first.requests, second.requests) == ([], [])
    assert bench.only_receipt().upstream == UpstreamFailed(True, MODEL, "session_not_accepted")


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_pinned_sessions_that_are_all_replaced_meanwhile_are_said_not_to_be_accepted(
    tmp_path: Path, number: int
) -> None:
    """However many there are, and though the last attempt is used up by then (ACI §5.3, §10)."""
    async with router_bench(tmp_path, nodes=number) as bench:
        answer = await bench.run(prompt(provider={"aci_session_ids": _all_replaced_meanwhile(bench)}))
        assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (412, "session_not_accepted")
        assert [node.requests for node in bench.nodes] == [[]] * number
        assert bench.only_receipt().upstream == UpstreamFailed(True, MODEL, "session_not_accepted")


async def test_while_a_pinned_session_is_left_untried_it_is_not_said_that_none_is_accepted(tmp_path: Path) -> None:
    async with router_bench(tmp_path, nodes=4) as bench:
        answer = await bench.run(prompt(provider={"aci_session_ids": _all_replaced_meanwhile(bench)}))
        error_type = json.loads(answer.body)["error"]["type"]
        assert (answer.started.status, error_type) == (503, "upstream_verification_failed")
        assert bench.only_receipt().upstream == UpstreamFailed(True, MODEL, "node_key_changed")


def _all_replaced_meanwhile(bench: RouterBench) -> list[str]:
    """Have each node renew while it is reached; return the sessions that they have before."""
    for number, node in enumerate(bench.nodes):
        peer = bench.peer_of(node)
        peer.meanwhile = partial(setattr, peer, "renewed", node_lease(f"n{number}", key="second"))
    return [draft_session(node.lease, node.target).session_id for node in bench.nodes]


async def test_a_node_that_has_another_key_meanwhile_gets_no_prompt(bench: RouterBench) -> None:
    """Genuine as it may be, the session that the receipt would cite is bound to the key before."""
    peer = bench.peer_of(bench.nodes[0])

    def renews() -> None:
        peer.renewed = node_lease("n0", key="second")

    peer.meanwhile = renews
    answer = await bench.run(prompt())
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == (503, "upstream_verification_failed")
    assert not bench.nodes[0].requests
    assert bench.only_receipt().upstream == UpstreamFailed(True, MODEL, "node_key_changed")


async def test_another_node_serves_where_one_may_not_any_more(two_nodes: RouterBench) -> None:
    bench = two_nodes
    bench.peer_of(_idler(bench)).meanwhile = lambda: bench.upstreams.take(
        bench.snapshot(bench.nodes[0].provider(draining=True), bench.nodes[1].provider())
    )
    assert (await bench.run(prompt())).started.status == 200
    assert [len(node.requests) for node in bench.nodes] == [0, 1]
