"""What a client may demand of whoever serves it (section 5.3), and what none can undo (section 1.2)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import Exchanges, constrained, current_session, exchange, prompt
from tests.mesh.aci.provider import Provider
from tests.mesh.aci.stage import PLAIN_MODEL, UNPROVEN_MODEL, Stage
from tests.mesh.aci.wire import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Router

pytestmark = pytest.mark.mesh

PIN = "ab" * 32
ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES)


def refusal(stage: Stage, endpoint: str, provider: Any, model: str | None = None) -> tuple[int, str]:
    """How a request of the owner's with this `provider` member is refused."""
    body = prompt(endpoint, model or stage.model, provider=provider)
    return stage.router.post(endpoint, body, key=stage.owner.key).refusal


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_c086_a_demand_for_verification_is_met(stage: Stage, router: Router, endpoint: str) -> None:
    body = prompt(endpoint, stage.model, provider={"aci_verified": True})
    answer = router.post(endpoint, body, key=stage.owner.key)
    assert answer.status == 200
    receipt = reader.parse(router.receipt(answer.receipt_id, stage.owner.key).body)
    outcome = reader.outcome(receipt)
    assert (outcome["result"], outcome["required"]) == ("verified", True)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_c087_a_demand_for_verification_that_nobody_meets_is_refused(
    stage: Stage, provider: Provider, endpoint: str
) -> None:
    assert refusal(stage, endpoint, {"aci_verified": True}, UNPROVEN_MODEL) == (503, "upstream_verification_failed")
    assert not provider.bodies


def test_c087_a_model_that_nobody_verified_serves_is_refused_and_not_called_unknown(stage: Stage) -> None:
    known = exchange(stage, CHAT, constrained(PLAIN_MODEL, {"aci_verified": True}), stage.guest)
    assert known.answer.refusal == (503, "upstream_verification_failed")


@pytest.mark.parametrize("provider", [{"aci_verified": False}, {}, None], ids=repr)
def test_c088_nothing_that_a_client_leaves_out_loosens_the_deployments_demand(stage: Stage, provider: Any) -> None:
    known = exchange(stage, CHAT, constrained(stage.model, provider), stage.owner)
    outcome = reader.outcome(known.receipt)
    assert (outcome["result"], outcome["required"]) == ("verified", True)
    assert refusal(stage, CHAT, provider, UNPROVEN_MODEL) == (503, "upstream_verification_failed")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_c089_an_empty_list_of_sessions_is_refused(stage: Stage, endpoint: str) -> None:
    assert refusal(stage, endpoint, {"aci_session_ids": []}) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "ids",
    [
        PIN,
        {},
        None,
        7,
        True,
        [PIN[:-1]],
        [PIN + "0"],
        [PIN.upper()],
        [7],
        [None],
        ["sha256:" + PIN],
        [PIN, "x"],
        [[PIN]],
    ],
    ids=repr,
)
def test_c090_a_list_that_is_none_of_session_ids_is_refused(stage: Stage, ids: Any) -> None:
    assert refusal(stage, CHAT, {"aci_session_ids": ids}) == (400, "invalid_request_error")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_c091_sessions_without_verification_are_refused(stage: Stage, endpoint: str) -> None:
    asked = {"aci_session_ids": [PIN], "aci_verified": False}
    assert refusal(stage, endpoint, asked) == (400, "invalid_request_error")


@pytest.mark.parametrize("name", ["aci_", "aci_verify", "aci_region", "aci_session_id"])
def test_c092_an_unknown_demand_is_refused(stage: Stage, name: str) -> None:
    assert refusal(stage, CHAT, {name: True, "aci_verified": True}) == (400, "invalid_request_error")


@pytest.mark.parametrize("provider", [[], "aci", 1, True], ids=repr)
def test_c093_a_provider_that_is_no_object_is_refused(stage: Stage, provider: Any) -> None:
    assert refusal(stage, CHAT, provider) == (400, "invalid_request_error")


@pytest.mark.parametrize("verified", [None, 1, 0, "true", [], {}], ids=repr)
def test_c093_a_demand_that_is_neither_true_nor_false_is_refused(stage: Stage, verified: Any) -> None:
    assert refusal(stage, CHAT, {"aci_verified": verified}) == (400, "invalid_request_error")


def test_c094_sessions_imply_verification(stage: Stage, provider: Provider) -> None:
    pins = {"aci_session_ids": [current_session(stage)]}
    known = exchange(stage, CHAT, constrained(stage.model, pins), stage.guest)
    assert reader.outcome(known.receipt)["required"] is True
    refused = exchange(stage, CHAT, constrained(PLAIN_MODEL, pins), stage.guest)
    assert refused.answer.refusal == (412, "session_not_accepted")
    assert not provider.bodies


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_c095_a_pin_serves_and_is_cited(stage: Stage, router: Router, endpoint: str) -> None:
    pin = current_session(stage)
    body = prompt(endpoint, stage.model, provider={"aci_session_ids": [pin]})
    answer = router.post(endpoint, body, key=stage.owner.key)
    assert answer.status == 200
    receipt = reader.parse(router.receipt(answer.receipt_id, stage.owner.key).body)
    assert reader.outcome(receipt)["session_id"] == pin


def test_c096_an_unknown_pin_is_refused_with_a_receipt(stage: Stage, exchanges: Exchanges) -> None:
    known = exchanges["unknown pin"]
    assert known.answer.refusal == (412, "session_not_accepted")
    assert reader.outcome(known.receipt)["result"] == "failed"
    assert not reader.events(known.receipt, "request.forwarded")


def test_c097_a_superseded_pin_is_refused(stage: Stage, router: Router) -> None:
    before = stage.earlier.session_id
    assert router.get(f"/v1/aci/sessions/{before}").status == 200
    assert refusal(stage, CHAT, {"aci_session_ids": [before]}) == (412, "session_not_accepted")


def test_c098_pins_are_held_against_the_sessions_that_there_are_since_a_new_verification(stage: Stage) -> None:
    """Node and router were started anew: a session took the place of the one before."""
    current = current_session(stage)
    assert current != stage.earlier.session_id
    refused = exchange(
        stage, CHAT, constrained(stage.model, {"aci_session_ids": [stage.earlier.session_id]}), stage.owner
    )
    assert refused.answer.refusal == (412, "session_not_accepted")
    outcome = reader.outcome(refused.receipt)
    assert (outcome["result"], outcome["required"], outcome["reason"]) == ("failed", True, "session_not_accepted")
    assert not reader.events(refused.receipt, "request.forwarded")
    served = exchange(stage, CHAT, constrained(stage.model, {"aci_session_ids": [current]}), stage.owner)
    assert reader.outcome(served.receipt)["session_id"] == current


def test_c099_of_several_pins_any_current_one_serves(stage: Stage) -> None:
    current = current_session(stage)
    pins = [PIN, stage.earlier.session_id, current, current]
    known = exchange(stage, CHAT, constrained(stage.model, {"aci_session_ids": pins}), stage.owner)
    assert known.answer.status == 200
    assert reader.outcome(known.receipt)["session_id"] == current


@pytest.mark.parametrize(
    ("provider_member", "kept"),
    [
        ({"aci_verified": False}, None),
        ({"aci_verified": False, "order": ["a", "b"]}, {"order": ["a", "b"]}),
        ({"order": [], "aci_verified": False, "only": None}, {"order": [], "only": None}),
    ],
    ids=["nothing else", "one more", "two more"],
)
def test_c100_demands_are_not_forwarded(
    stage: Stage, provider: Provider, provider_member: dict[str, Any], kept: dict[str, Any] | None
) -> None:
    known = exchange(stage, CHAT, constrained(PLAIN_MODEL, provider_member), stage.guest)
    assert known.answer.status == 200
    (body,) = provider.bodies
    expected = json.loads(known.request) | {"provider": kept}
    if kept is None:
        del expected["provider"]
    assert json.loads(body) == expected


def test_c101_taking_demands_out_shows_as_a_rewrite(stage: Stage, exchanges: Exchanges) -> None:
    for kind, is_rewritten in (("verified", True), ("pinned", True), ("chat", False)):
        receipt = exchanges[kind].receipt
        received = reader.body_hash(receipt, "request.received")
        assert (reader.body_hash(receipt, "request.forwarded") != received) is is_rewritten


@pytest.mark.parametrize("demand", [{"aci_verified": True}, {"aci_session_ids": [PIN]}], ids=repr)
@pytest.mark.parametrize("stream", [False, True])
def test_c102_whoever_proves_nothing_is_no_candidate(
    stage: Stage, provider: Provider, demand: dict[str, Any], stream: bool
) -> None:
    known = exchange(stage, CHAT, constrained(PLAIN_MODEL, demand, stream=stream), stage.guest)
    assert known.answer.status >= 400
    assert not reader.events(known.receipt, "request.forwarded")
    assert not provider.bodies


def test_c102_a_verified_only_tenant_never_reaches_it(stage: Stage, provider: Provider) -> None:
    known = exchange(stage, CHAT, prompt(CHAT, PLAIN_MODEL), stage.owner)
    assert known.answer.status >= 400
    assert not provider.bodies


@pytest.mark.parametrize(
    ("headers", "member"),
    [
        ([("X-Upstream-Verification", "off")], None),
        ([("X-ACI-Verified", "false")], {"aci_verified": False}),
        ([("X-Forwarded-Host", "elsewhere.example")], {"order": ["plain"], "only": ["plain"]}),
        ([("X-Teemesh-Upstream", "foreign/plain")], {"allow_fallbacks": True}),
    ],
)
def test_c103_nothing_that_a_client_sends_skips_verification(
    stage: Stage, provider: Provider, headers: list[tuple[str, str]], member: Any
) -> None:
    """A verified node serves what one can, and what only a provider could that is to be verified, nobody."""
    known = exchange(stage, CHAT, constrained(stage.model, member), stage.guest, headers=headers)
    assert known.answer.status == 200
    assert reader.outcome(known.receipt)["result"] == "verified"
    refused = exchange(stage, CHAT, constrained(UNPROVEN_MODEL, member), stage.owner, headers=headers)
    assert refused.answer.refusal == (503, "upstream_verification_failed")
    assert not reader.events(refused.receipt, "request.forwarded")
    assert not provider.bodies


@pytest.mark.parametrize("kind", ["unverified", "unverified stream"])
def test_c105_serving_without_verification_is_recorded_as_that(exchanges: Exchanges, kind: str) -> None:
    outcome = reader.outcome(exchanges[kind].receipt)
    assert (outcome["result"], outcome["required"]) == ("failed", False)
    assert "session_id" not in outcome
