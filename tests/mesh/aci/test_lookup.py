"""Where receipts are found, and by whom (sections 7.1 and 7.6)."""

from __future__ import annotations

import json
import secrets
import threading
from pathlib import Path

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import ALL, FINISHED, MARKER, STREAMED, Exchanges, exchange, prompt
from tests.mesh.aci.provider import ANSWER, EVENTS, Provider
from tests.mesh.aci.stage import PLAIN_MODEL, Stage, Tenant, new_tenant
from tests.mesh.aci.wire import CHAT, RECEIPTS, Answer, Router, bearer

pytestmark = pytest.mark.mesh

UNKNOWN = "rcpt-" + "0" * 24


@pytest.mark.parametrize("kind", ALL)
def test_c106_a_receipt_is_found_by_the_id_in_the_header(
    stage: Stage, router: Router, exchanges: Exchanges, kind: str
) -> None:
    known = exchanges[kind]
    assert known.receipt["receipt_id"] == known.answer.receipt_id


@pytest.mark.parametrize("kind", ["chat", "completion", "message", "response"])
def test_c107_a_receipt_is_found_by_the_answers_own_id(
    stage: Stage, router: Router, exchanges: Exchanges, kind: str
) -> None:
    known = exchanges[kind]
    found = reader.parse(router.receipt(known.answer.json["id"], stage.owner.key).body)
    assert found == known.receipt


def test_c107_a_streams_receipt_is_found_by_the_chunks_id(stage: Stage, router: Router, exchanges: Exchanges) -> None:
    known = exchanges["streamed chat"]
    first = known.answer.body.partition(b"\n\n")[0].removeprefix(b"data: ")
    assert reader.parse(router.receipt(json.loads(first)["id"], stage.owner.key).body) == known.receipt


def test_c108_an_answers_id_that_comes_again_finds_the_newest(stage: Stage, router: Router, provider: Provider) -> None:
    provider.answers(ANSWER.replace(b"chatcmpl-of-the-provider", b"chatcmpl-again"))
    asked = [exchange(stage, CHAT, prompt(CHAT, PLAIN_MODEL), stage.guest) for _ in range(2)]
    found = reader.parse(router.receipt("chatcmpl-again", stage.guest.key).body)
    assert found == asked[1].receipt
    assert found != asked[0].receipt


def test_c108_an_answers_id_finds_nothing_for_another_tenant(
    stage: Stage, router: Router, exchanges: Exchanges
) -> None:
    chat_id = exchanges["chat"].answer.json["id"]
    assert router.receipt(chat_id, stage.other.key).refusal == (404, "not_found")


def test_c109_a_stream_has_no_receipt_while_it_runs(stage: Stage, router: Router, provider: Provider) -> None:
    gate = threading.Event()
    answer = STREAMED.replace(b"chatcmpl-streamed", b"chatcmpl-running")
    provider.answers(answer, gate, FINISHED, content_type=EVENTS)
    with router.connected() as conversation:
        response = conversation.begin("POST", CHAT, prompt(CHAT, PLAIN_MODEL, stream=True), bearer(stage.guest.key))
        assert response.read(len(answer)) == answer
        ids = (str(response.getheader("X-Receipt-Id")), "chatcmpl-running")
        meanwhile = [router.receipt(identifier, stage.guest.key).refusal for identifier in ids]
        gate.set()
        response.read()
    assert meanwhile == [(404, "not_found")] * 2
    assert [router.receipt(identifier, stage.guest.key).status for identifier in ids] == [200, 200]


@pytest.mark.parametrize("identifier", [UNKNOWN, "chatcmpl-none", "x" * 2000, "%C3%A9", "..", "%2e%2e%2fsessions"])
def test_c110_an_unknown_id_is_not_found(stage: Stage, router: Router, identifier: str) -> None:
    assert router.receipt(identifier, stage.owner.key).refusal == (404, "not_found")


def anonymous(router: Router, identifier: str) -> Answer:
    return router.get(f"{RECEIPTS}/{identifier}")


def test_c111_without_a_key_nothing_is_said(router: Router, exchanges: Exchanges) -> None:
    there, not_there = anonymous(router, exchanges["chat"].answer.receipt_id), anonymous(router, UNKNOWN)
    assert there.refusal == not_there.refusal == (401, "unauthorized")
    assert there.body == not_there.body


@pytest.mark.parametrize("kind", ["chat", "streamed chat", "unknown pin"])
def test_c112_for_another_tenant_a_receipt_does_not_exist(
    stage: Stage, router: Router, exchanges: Exchanges, kind: str
) -> None:
    theirs = router.receipt(exchanges[kind].answer.receipt_id, stage.other.key)
    unknown = router.receipt(UNKNOWN, stage.other.key)
    assert theirs.refusal == unknown.refusal == (404, "not_found")
    assert theirs.body == unknown.body


def test_c113_for_a_key_of_nobody_a_receipt_does_not_exist(router: Router, exchanges: Exchanges) -> None:
    key = "sk-teemesh-" + secrets.token_urlsafe(32)
    there, not_there = router.receipt(exchanges["chat"].answer.receipt_id, key), router.receipt(UNKNOWN, key)
    assert there.refusal == not_there.refusal == (404, "not_found")
    assert there.body == not_there.body


def holds(path: Path, key: str) -> bool:
    """Whether a file has these bytes. One that has just gone has nothing."""
    try:
        return path.is_file() and key.encode() in path.read_bytes()
    except FileNotFoundError:
        return False


def test_c114_a_key_is_kept_nowhere(stage: Stage, router: Router) -> None:
    assert router.get("/v1/models", key=stage.guest.key).status == 200
    assert not [path for path in stage.mesh.state.rglob("*") if holds(path, stage.guest.key)]
    # The owner's is its own copy: teemesh up leaves it in a file for whoever runs the mesh.
    assert [path.name for path in stage.mesh.state.rglob("*") if holds(path, stage.owner.key)]


def test_c115_a_tenants_new_key_opens_older_receipts(stage: Stage, router: Router) -> None:
    tenant = new_tenant(stage.mesh)
    asked = exchange(stage, CHAT, prompt(CHAT, stage.model), tenant)
    renewed = Tenant(tenant.tenant_id, "sk-teemesh-" + secrets.token_urlsafe(32))
    stage.add_keys(renewed, 2, renewed.key)
    fetched = router.receipt(asked.answer.receipt_id, renewed.key)
    assert fetched.status == 200
    assert reader.parse(fetched.body) == asked.receipt


@pytest.mark.parametrize("kind", ALL)
def test_c117_a_receipt_holds_nothing_of_prompt_or_answer(exchanges: Exchanges, kind: str) -> None:
    known = exchanges[kind]
    text = json.dumps(known.receipt)
    assert MARKER not in text
    assert "as the test says" not in text
    for event in known.receipt["event_log"]:
        assert not {"body", "content", "messages", "prompt", "text"} & set(event)
