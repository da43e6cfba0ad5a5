"""What changes between the choice of a node and the moment in which it would get the prompt: it does not get it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from teemesh.registry.v1 import registry_pb2

from libs.aci.receipt_events import UpstreamFailed
from libs.policy.constraints import Constraints, TenantConstraints
from libs.policy.revoked import Revoked
from services.registry.sessions import draft_session
from tests.fakes.leases import MODEL, node_lease
from tests.fakes.ledgers import TENANT
from tests.fakes.routers import RouterBench, aborts, prompt

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


def _the_registry_ends_it(bench: RouterBench) -> None:
    bench.upstreams.take(bench.snapshot())


def _the_policy_goes_stale(bench: RouterBench) -> None:
    bench.member.policy.fresh = False


def _the_tenant_is_revoked(bench: RouterBench) -> None:
    bench.member.policy.revoked = Revoked(tenants=frozenset({TENANT.tenant_id}))


def _constrain(bench: RouterBench, tenant: TenantConstraints) -> None:
    bench.member.policy.constraints = Constraints(by_tenant={TENANT.tenant_id: tenant})


_UNSUITED = (502, "upstream_error", "node_no_longer_suits")


@pytest.mark.parametrize(
    ("happens", "refusal"),
    [
        (_the_model_is_withdrawn, _UNSUITED),
        (_its_weights_are_withdrawn, _UNSUITED),
        (_the_tenant_may_use_another_model_only, _UNSUITED),
        (_the_tenant_is_kept_to_a_region, _UNSUITED),
        (_the_tenants_evidence_must_be_younger, _UNSUITED),
        (_the_node_is_drained, _UNSUITED),
        (_its_lease_is_shortened, _UNSUITED),
        (_the_registry_ends_it, _UNSUITED),
        (_the_policy_goes_stale, (503, "service_unavailable", "service_unavailable")),
        (_the_tenant_is_revoked, (403, "tenant_revoked", "tenant_revoked")),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else value[-1],
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


@pytest.mark.parametrize(
    ("happens", "refusal"),
    [
        (_the_model_is_withdrawn, (502, "upstream_error")),
        (_the_tenant_is_kept_to_a_region, (502, "upstream_error")),
        (_the_policy_goes_stale, (502, "upstream_error")),
        (_the_tenant_is_revoked, (502, "upstream_error")),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
async def test_a_second_attempt_is_judged_as_the_first_was(
    two_nodes: RouterBench, happens: Happening, refusal: tuple[int, str]
) -> None:
    """The first node has the prompt and refuses it; what happened meanwhile counts before another gets it."""
    bench = two_nodes
    busier = registry_pb2.Load(running_requests=1)
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(), bench.nodes[1].provider(load=busier)))
    first, second = bench.nodes
    first.refuses = True
    first.meanwhile = lambda: happens(bench)
    answer = await bench.run(prompt())
    assert (len(first.requests), len(second.requests)) == (1, 0)
    assert (answer.started.status, json.loads(answer.body)["error"]["type"]) == refusal
    assert aborts(bench.only_receipt()) == ["upstream_failed"]


async def test_a_pinned_session_that_its_node_has_replaced_meanwhile_gets_no_prompt(two_nodes: RouterBench) -> None:
    """The node is genuine and verified under its next key; the client did not say that it accepts that."""
    bench = two_nodes
    first, second = bench.nodes
    pinned = draft_session(first.lease, first.target).session_id

    def renews() -> None:
        bench.peer_of(first).renewed = node_lease("n0", key="second")

    bench.peer_of(first).meanwhile = renews
    answer = await bench.run(prompt(provider={"aci_session_ids": [pinned]}))
    assert (answer.started.status, first.requests, second.requests) == (502, [], [])
    assert bench.only_receipt().upstream == UpstreamFailed(True, MODEL, "node_key_changed")


async def test_another_node_serves_where_one_may_not_any_more(two_nodes: RouterBench) -> None:
    bench = two_nodes
    busier = registry_pb2.Load(running_requests=1)
    bench.upstreams.take(bench.snapshot(bench.nodes[0].provider(), bench.nodes[1].provider(load=busier)))
    bench.peer_of(bench.nodes[0]).meanwhile = lambda: bench.upstreams.take(
        bench.snapshot(bench.nodes[0].provider(draining=True), bench.nodes[1].provider())
    )
    assert (await bench.run(prompt())).started.status == 200
    assert [len(node.requests) for node in bench.nodes] == [0, 1]
