"""What receipts say of the upstream (section 7.5)."""

from __future__ import annotations

import json

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import (
    ALL,
    BY_NODE,
    BY_PROVIDER,
    REFUSED,
    Exchanges,
    constrained,
    exchange,
    prompt,
)
from tests.mesh.aci.provider import Provider
from tests.mesh.aci.stage import PLAIN_MODEL, THERE_NAMED, UNPROVEN_MODEL, Stage
from tests.mesh.aci.wire import CHAT, SESSIONS, Router

pytestmark = pytest.mark.mesh


@pytest.mark.parametrize("kind", ALL)
def test_c149_every_receipt_says_it(exchanges: Exchanges, kind: str) -> None:
    assert reader.events(exchanges[kind].receipt, "upstream.verified")


@pytest.mark.parametrize("kind", BY_NODE)
def test_c150_the_verified_form_cites_a_session(exchanges: Exchanges, kind: str) -> None:
    outcome = reader.outcome(exchanges[kind].receipt)
    assert set(outcome) == {"type", "result", "required", "model_id", "session_id"}
    assert outcome["result"] == "verified"
    assert reader.is_hex(outcome["session_id"], 32)


@pytest.mark.parametrize("kind", [*BY_PROVIDER, *REFUSED])
def test_c151_the_failed_form_has_a_reason_and_no_session(exchanges: Exchanges, kind: str) -> None:
    outcome = reader.outcome(exchanges[kind].receipt)
    assert {"type", "result", "required", "model_id", "reason"} <= set(outcome)
    assert set(outcome) <= {"type", "result", "required", "model_id", "reason", "upstream_name"}
    assert outcome["result"] == "failed"
    assert isinstance(outcome["reason"], str)
    assert outcome["reason"]


@pytest.mark.parametrize(
    "kind", ["chat", "streamed chat", "completion", "verified", "pinned", "unknown pin", "unverifiable"]
)
def test_c152_verification_was_required_where_tenant_or_request_say_so(exchanges: Exchanges, kind: str) -> None:
    assert reader.outcome(exchanges[kind].receipt)["required"] is True


@pytest.mark.parametrize("kind", BY_PROVIDER)
def test_c153_verification_was_not_required_of_who_never_verifies(exchanges: Exchanges, kind: str) -> None:
    assert reader.outcome(exchanges[kind].receipt)["required"] is False


def test_c153_verification_was_not_required_where_nobody_asked_for_it(stage: Stage) -> None:
    known = exchange(stage, CHAT, prompt(CHAT, stage.model), stage.guest)
    assert reader.outcome(known.receipt)["result"] == "verified"
    assert reader.outcome(known.receipt)["required"] is False


def test_c153_a_refusal_says_it_too(stage: Stage) -> None:
    known = exchange(stage, CHAT, prompt(CHAT, "no-such-model"), stage.guest)
    assert reader.outcome(known.receipt)["required"] is False


@pytest.mark.parametrize(
    ("kind", "model"),
    [("chat", None), ("streamed completion", None), ("unverified", PLAIN_MODEL), ("renamed", THERE_NAMED)],
)
def test_c154_the_model_is_the_one_that_the_upstream_served(
    stage: Stage, exchanges: Exchanges, kind: str, model: str | None
) -> None:
    assert reader.outcome(exchanges[kind].receipt)["model_id"] == (model or stage.model)


@pytest.mark.parametrize("kind", BY_NODE)
def test_c155_the_cited_session_is_served_with_its_evidence(router: Router, exchanges: Exchanges, kind: str) -> None:
    cited = reader.outcome(exchanges[kind].receipt)["session_id"]
    fetched = router.get(f"{SESSIONS}/{cited}")
    assert fetched.status == 200
    document = reader.parse(fetched.body)
    assert reader.session_id(document) == cited
    assert reader.evidence(document)


def test_c156_who_had_the_prompt_before_is_named(stage: Stage, provider: Provider) -> None:
    provider.answers(b"{}", status=500)
    known = exchange(stage, CHAT, prompt(CHAT, PLAIN_MODEL), stage.guest)
    outcomes = reader.events(known.receipt, "upstream.verified")
    assert outcomes[0]["upstream_name"] == "foreign/plain"
    assert len(outcomes) == len(provider.bodies)
    assert len(reader.events(known.receipt, "request.forwarded")) == 1


@pytest.mark.parametrize(
    "body",
    [
        constrained(UNPROVEN_MODEL, {"aci_verified": True}),
        constrained(UNPROVEN_MODEL, {"aci_verified": True}, stream=True),
        prompt(CHAT, UNPROVEN_MODEL),
    ],
    ids=["demanded", "demanded of a stream", "the deployment's own demand"],
)
def test_c157_a_required_verification_that_failed_forwards_nothing(
    stage: Stage, provider: Provider, body: bytes
) -> None:
    known = exchange(stage, CHAT, body, stage.owner)
    assert known.answer.refusal == (503, "upstream_verification_failed")
    assert not reader.events(known.receipt, "request.forwarded")
    assert json.loads(body)["model"] == reader.outcome(known.receipt)["model_id"]
    assert not provider.bodies
