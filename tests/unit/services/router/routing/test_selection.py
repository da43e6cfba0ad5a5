from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest

from libs.aci.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, Endpoint
from libs.policy.constraints import TenantConstraints
from services.router.errors import (
    EndpointNotOffered,
    ModelNotFound,
    SessionNotAccepted,
    TenantConstraintsUnmet,
    UpstreamVerificationFailed,
)
from services.router.prompt import Constraints
from services.router.routing.selection import Candidate, Load, select, suits

NOW = 1_000_000
ANYONE = TenantConstraints()
WEIGHTS = "aa" * 32
ALLOWED = {"m": frozenset({WEIGHTS}), "idle": frozenset({WEIGHTS})}


def node(name: str, **changes: Any) -> Candidate:
    candidate = Candidate(
        spiffe_id=name,
        target=f"{name}:7000",
        models={"m": WEIGHTS},
        evidence_digest="bb" * 32,
        session_id=name.encode().hex().ljust(64, "0"),
        lease_until_ms=NOW + 1,
        load=Load(running=0, waiting=0, capacity=4),
    )
    return dataclasses.replace(candidate, **changes)


def pick(
    *candidates: Candidate,
    model: str = "m",
    endpoint: Endpoint = CHAT,
    pinned: frozenset[str] | None = None,
    tenant: TenantConstraints = ANYONE,
    **more: Any,
) -> str:
    return select(
        candidates,
        model=model,
        endpoint=endpoint,
        constraints=Constraints(verified=True, session_ids=pinned),
        tenant=tenant,
        allowed_models=ALLOWED,
        now_ms=NOW,
        choice=random.Random(7),  # noqa: S311 - a seed makes the test repeat
        **more,
    ).spiffe_id


def test_least_load_for_its_capacity_is_chosen() -> None:
    small = node("small", load=Load(running=1, waiting=0, capacity=2))
    large = node("large", load=Load(running=2, waiting=1, capacity=8))
    assert pick(small, large) == "large"


def test_own_requests_count_before_the_node_reports_them() -> None:
    assert pick(node("a"), node("b"), in_flight={"a": 1}) == "b"
    reported = node("b", load=Load(running=1, waiting=0, capacity=4))
    assert {pick(node("a"), reported, in_flight={"a": 2}), pick(node("a"), reported, in_flight={"b": 1})} == {"a", "b"}


def test_ties_fall_to_chance_and_repeat_with_the_seed() -> None:
    choice = random.Random(1)  # noqa: S311 - a seed makes the test repeat
    counts = Counter(
        select(
            [node("a"), node("b"), node("c")],
            model="m",
            endpoint=CHAT,
            constraints=Constraints(),
            tenant=ANYONE,
            allowed_models=ALLOWED,
            now_ms=NOW,
            choice=choice,
        ).spiffe_id
        for _ in range(300)
    )
    assert min(counts.values()) > 60
    assert pick(node("a"), node("b"), node("c")) == pick(node("a"), node("b"), node("c"))


@pytest.mark.parametrize(
    "changes",
    [
        {"lease_until_ms": NOW},
        {"draining": True},
        {"models": {"other": WEIGHTS}},
        {"models": {"m": "cc" * 32}},
        {"load": Load(running=0, waiting=0, capacity=0)},
    ],
)
def test_node_that_may_not_serve_is_never_chosen(changes: dict[str, Any]) -> None:
    assert pick(node("a", **changes), node("b", load=Load(9, 9, 1))) == "b"
    with pytest.raises(UpstreamVerificationFailed):
        pick(node("a", **changes))


def test_tried_nodes_are_left_out() -> None:
    assert pick(node("a"), node("b"), excluded={"a"}) == "b"
    with pytest.raises(UpstreamVerificationFailed):
        pick(node("a"), excluded={"a"})


def test_model_outside_the_policy_is_unknown_even_when_a_node_has_it() -> None:
    with pytest.raises(ModelNotFound):
        pick(node("a", models={"x": WEIGHTS}), model="x")


def test_model_of_the_policy_without_a_node_is_a_refusal() -> None:
    with pytest.raises(UpstreamVerificationFailed):
        pick(node("a"), model="idle")


def test_pins_are_obeyed_or_refused_but_never_escaped() -> None:
    busy = node("busy", load=Load(9, 9, 1))
    assert pick(node("a"), busy, pinned=frozenset({busy.session_id})) == "busy"
    with pytest.raises(SessionNotAccepted):
        pick(node("a"), busy, pinned=frozenset({"00" * 32}))
    with pytest.raises(SessionNotAccepted):
        pick(dataclasses.replace(busy, draining=True), pinned=frozenset({busy.session_id}))


@pytest.mark.parametrize("pinned", [node("a").session_id, "00" * 32], ids=["a session of a node", "nobody's session"])
@pytest.mark.parametrize(
    "asked",
    [{"tenant": TenantConstraints(regions=frozenset({"eu-1"}))}, {"endpoint": EMBEDDINGS}, {"excluded": {"a"}}],
    ids=["a region", "an endpoint", "tried"],
)
def test_that_no_pinned_session_can_serve_is_said_whatever_keeps_them_from_it(
    pinned: str, asked: dict[str, Any]
) -> None:
    with pytest.raises(SessionNotAccepted) as refused:
        pick(node("a"), node("b"), pinned=frozenset({pinned}), **asked)
    assert (refused.value.status, refused.value.type) == (412, "session_not_accepted")


@pytest.mark.parametrize(
    ("other", "asked"),
    [
        ({"endpoints": ()}, {}),
        ({"region": "us-1"}, {"tenant": TenantConstraints(regions=frozenset({"eu-1"}))}),
    ],
    ids=["an endpoint", "a region"],
)
def test_what_a_tried_node_has_is_not_said_to_be_missing(other: dict[str, Any], asked: dict[str, Any]) -> None:
    with pytest.raises(UpstreamVerificationFailed):
        pick(node("a", region="eu-1"), node("b", **other), excluded={"a"}, **asked)


MET: dict[str, Any] = {
    "region": "eu-1",
    "tee_type": "tdx",
    "has_gpu": True,
    "evidence_time_ms": NOW - 60_000,
}
DEMANDS: dict[str, tuple[TenantConstraints, dict[str, Any], str]] = {
    "a region": (TenantConstraints(regions=frozenset({"eu-1", "eu-2"})), {"region": "us-1"}, "regions"),
    "a region of one that claims none": (TenantConstraints(regions=frozenset({"eu-1"})), {"region": None}, "regions"),
    "a technology": (TenantConstraints(tee_types=frozenset({"tdx"})), {"tee_type": "sev-snp"}, "hardware.tee_types"),
    "a GPU": (TenantConstraints(gpu_required=True), {"has_gpu": False}, "hardware.gpu_required"),
    "fresh evidence": (
        TenantConstraints(max_evidence_age_seconds=60),
        {"evidence_time_ms": NOW - 60_001},
        "max_evidence_age_seconds",
    ),
}


@pytest.mark.parametrize("name", DEMANDS)
def test_a_node_that_is_not_what_policy_demands_for_the_tenant_is_never_chosen(name: str) -> None:
    tenant, lacking, member = DEMANDS[name]
    met = node("met", **MET, load=Load(9, 9, 1))
    other = node("other", **{**MET, **lacking})
    assert pick(met, other, tenant=tenant) == "met"
    assert pick(met, other) == "other"
    with pytest.raises(TenantConstraintsUnmet, match=member) as refused:
        pick(other, tenant=tenant)
    assert (refused.value.status, refused.value.reason) == (503, "TENANT_CONSTRAINTS_UNMET")
    assert refused.value.why == f"tenant_constraints_unmet: {member}"


@pytest.mark.parametrize(
    "tenant", [TenantConstraints(regions=frozenset()), TenantConstraints(tee_types=frozenset())], ids=["regions", "tee"]
)
def test_an_empty_list_allows_no_node(tenant: TenantConstraints) -> None:
    with pytest.raises(TenantConstraintsUnmet):
        pick(node("a", **MET), node("b", **{**MET, "region": None, "tee_type": None}), tenant=tenant)


def test_other_weights_than_the_tenants_never_serve_it_and_a_model_that_is_not_its_own_is_unknown() -> None:
    ours, theirs = frozenset({WEIGHTS}), "dd" * 32
    allowed = {"m": frozenset({WEIGHTS, theirs}), "idle": ours}
    nodes = (node("ours", load=Load(9, 9, 1)), node("theirs", models={"m": theirs}))
    more: dict[str, Any] = {"allowed_models": allowed}
    assert _pick_of(nodes, TenantConstraints(models={"m": ours}), **more) == "ours"
    assert _pick_of(nodes, ANYONE, **more) == "theirs"
    with pytest.raises(TenantConstraintsUnmet, match="models"):
        _pick_of(nodes, TenantConstraints(models={"m": frozenset()}), **more)
    for models in ({"idle": ours}, {}):
        with pytest.raises(ModelNotFound):
            _pick_of(nodes, TenantConstraints(models=models), **more)


def _pick_of(nodes: tuple[Candidate, ...], tenant: TenantConstraints, **more: Any) -> str:
    return select(
        nodes,
        model="m",
        endpoint=CHAT,
        constraints=Constraints(),
        tenant=tenant,
        now_ms=NOW,
        choice=random.Random(7),  # noqa: S311 - a seed makes the test repeat
        **more,
    ).spiffe_id


def test_a_provider_that_nobody_verifies_serves_only_where_policy_and_request_take_it() -> None:
    plain = node("plain", verified=False)
    best_effort = TenantConstraints(verified_only=False)
    more: dict[str, Any] = {"allowed_models": ALLOWED}
    assert _pick_of((plain,), best_effort, **more) == "plain"
    with pytest.raises(UpstreamVerificationFailed):
        _pick_of((plain,), ANYONE, **more)
    with pytest.raises(UpstreamVerificationFailed):
        pick(plain, tenant=best_effort)


def test_without_a_candidate_no_constraint_is_blamed_and_a_pin_escapes_none() -> None:
    tenant = TenantConstraints(regions=frozenset({"eu-1"}))
    with pytest.raises(UpstreamVerificationFailed):
        pick(node("a", region="us-1", draining=True), tenant=tenant)
    abroad, home = node("abroad", region="us-1"), node("home", region="eu-1")
    with pytest.raises(SessionNotAccepted):
        pick(abroad, home, tenant=tenant, pinned=frozenset({abroad.session_id}))


def test_only_a_node_that_offers_the_endpoint_is_chosen_however_busy() -> None:
    first = node("first")
    more = node("more", endpoints={CHAT, MESSAGES}, load=Load(9, 9, 1))
    assert pick(first, more, endpoint=MESSAGES) == "more"
    assert pick(first, more) == "first"


def test_an_endpoint_that_no_node_offers_is_a_refusal_and_not_another_endpoint() -> None:
    with pytest.raises(EndpointNotOffered) as refused:
        pick(node("first"), node("more", endpoints={CHAT, MESSAGES}), endpoint=EMBEDDINGS)
    assert (refused.value.status, refused.value.type) == (404, "not_found_error")
    with pytest.raises(EndpointNotOffered):
        pick(node("none", endpoints=()))


def test_a_node_that_may_not_serve_does_not_make_an_endpoint_known() -> None:
    with pytest.raises(UpstreamVerificationFailed):
        pick(node("a", endpoints={EMBEDDINGS}, draining=True), endpoint=EMBEDDINGS)


def test_a_node_whose_claims_name_none_offers_the_two_of_before() -> None:
    for endpoint in (CHAT, COMPLETIONS):
        assert pick(node("first"), endpoint=endpoint) == "first"


def test_a_node_that_was_chosen_suits_only_where_it_is_asked() -> None:
    def suited(endpoint: Endpoint) -> bool:
        return suits(
            node("first"),
            model="m",
            endpoint=endpoint,
            constraints=Constraints(),
            tenant=ANYONE,
            allowed_models=ALLOWED,
            now_ms=NOW,
        )

    assert suited(CHAT)
    assert not suited(MESSAGES)
