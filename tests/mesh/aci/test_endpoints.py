"""The endpoints (section 5) and their errors (section 10)."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import REFUSED, STREAMS, Exchange, Exchanges, prompt
from tests.mesh.aci.provider import Provider
from tests.mesh.aci.stage import PLAIN_MODEL, Stage
from tests.mesh.aci.wire import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    SESSIONS,
    Answer,
    Router,
    bearer,
)

pytestmark = pytest.mark.mesh


def chunks_of(exchange: Exchange) -> list[dict[str, Any]]:
    """What the events of a stream hold. It must end as OpenAI's do."""
    assert exchange.answer.header("Content-Type").startswith("text/event-stream")
    pieces = exchange.answer.body.split(b"\n\n")
    assert pieces[-2:] == [b"data: [DONE]", b""]
    assert all(piece.startswith(b"data: ") for piece in pieces[:-1])
    return [json.loads(piece.removeprefix(b"data: ")) for piece in pieces[:-2]]


def test_c070_a_chat_is_answered(exchanges: Exchanges) -> None:
    answer = exchanges["chat"].answer.json
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] > 0


def test_c071_a_chat_is_streamed(exchanges: Exchanges) -> None:
    chunks = chunks_of(exchanges["streamed chat"])
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons[-1] in ("stop", "length")
    assert not any(reasons[:-1])


def test_c072_a_prompt_is_completed(exchanges: Exchanges) -> None:
    answer = exchanges["completion"].answer.json
    (choice,) = answer["choices"]
    assert answer["object"] == "text_completion"
    assert isinstance(choice["text"], str)
    assert choice["finish_reason"] in ("stop", "length")


def test_c072_a_completion_is_streamed(exchanges: Exchanges) -> None:
    chunks = chunks_of(exchanges["streamed completion"])
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("streaming", [{}, {"stream": True}], ids=["buffered", "stream asked for"])
def test_c073_embeddings_are_served_and_never_streamed(stage: Stage, router: Router, streaming: dict[str, Any]) -> None:
    body = json.dumps({"model": stage.model, "input": "a"} | streaming).encode()
    answer = router.post(EMBEDDINGS, body, key=stage.owner.key)
    assert answer.status in ((200, 400) if streaming else (200,))
    assert answer.header("Content-Type").startswith("application/json")
    assert answer.receipt_id


def test_c074_messages_are_answered_in_their_own_shape(stage: Stage, router: Router) -> None:
    answer = router.post(MESSAGES, prompt(MESSAGES, stage.model), key=stage.owner.key)
    assert answer.status == 200
    assert (answer.json["type"], answer.json["role"]) == ("message", "assistant")
    assert answer.json["stop_reason"] in ("end_turn", "max_tokens")


def test_c074_messages_are_streamed_in_their_own_shape(stage: Stage, router: Router) -> None:
    answer = router.post(MESSAGES, prompt(MESSAGES, stage.model, stream=True), key=stage.owner.key)
    assert answer.status == 200
    assert b"event: message_start\n" in answer.body
    assert b"event: message_stop\n" in answer.body


def test_c075_responses_are_answered_in_their_own_shape(stage: Stage, router: Router) -> None:
    body = json.dumps({"model": stage.model, "input": "a", "max_output_tokens": 16}).encode()
    answer = router.post(RESPONSES, body, key=stage.owner.key)
    assert answer.status == 200
    assert answer.json["object"] == "response"
    assert answer.json["status"] in ("completed", "incomplete")


def test_c075_responses_are_streamed_in_their_own_shape(stage: Stage, router: Router) -> None:
    body = json.dumps({"model": stage.model, "input": "a", "max_output_tokens": 16, "stream": True}).encode()
    answer = router.post(RESPONSES, body, key=stage.owner.key)
    assert answer.status == 200
    assert b"event: response.created\n" in answer.body


def test_c076_the_models_are_a_list_of_openais(stage: Stage, router: Router) -> None:
    listed = router.get("/v1/models", key=stage.owner.key).json
    assert listed["object"] == "list"
    assert stage.model in [model["id"] for model in listed["data"]]
    assert all(set(model) >= {"id", "object", "created", "owned_by"} for model in listed["data"])


@pytest.mark.parametrize("kind", REFUSED)
def test_c077_every_refused_prompt_is_an_error_of_one_shape(exchanges: Exchanges, kind: str) -> None:
    error = exchanges[kind].answer.error
    assert (error["code"], error["param"]) == (None, None)


@pytest.mark.parametrize(
    ("method", "path", "status", "error_type"),
    [
        ("GET", "/v1/models", 401, "unauthorized"),
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/", 404, "not_found"),
        ("GET", f"{SESSIONS}/{'00' * 32}", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("PUT", COMPLETIONS, 405, "method_not_allowed"),
        ("POST", SESSIONS, 405, "method_not_allowed"),
    ],
)
def test_c077_every_other_refusal_is_an_error_of_the_same_shape(
    router: Router, method: str, path: str, status: int, error_type: str
) -> None:
    answer = router.send(method, path)
    assert answer.refusal == (status, error_type)
    assert (answer.error["code"], answer.error["param"]) == (None, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{not json",
        b"[]",
        b"null",
        b'{"messages":[]}',
        b'{"model":7,"messages":[]}',
        b'{"model":"","messages":[]}',
        b'{"model":"a","stream":"yes"}',
        b'{"model":"a","model":"b"}',
        b"\xff\xfe",
        b'{"model":"a","x":NaN}',
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_c078_a_malformed_body_is_an_invalid_request(stage: Stage, router: Router, body: bytes) -> None:
    assert router.post(CHAT, body, key=stage.owner.key).refusal == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("kind", "error_type"),
    [("unknown pin", "session_not_accepted"), ("unverifiable", "upstream_verification_failed")],
)
def test_c079_the_refusals_of_aci_have_their_types(exchanges: Exchanges, kind: str, error_type: str) -> None:
    assert exchanges[kind].answer.refusal == ({"unknown pin": 412, "unverifiable": 503}[kind], error_type)


def test_c079_receipts_are_refused_with_their_types(router: Router, stage: Stage) -> None:
    assert router.get("/v1/aci/receipts/rcpt-of-nobody").refusal == (401, "unauthorized")
    assert router.receipt("rcpt-of-nobody", stage.owner.key).refusal == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CHAT, {"POST"}), ("POST", "/v1/models", {"GET"}), ("DELETE", SESSIONS, {"GET"})],
)
def test_c081_another_method_is_told_which_it_is(router: Router, method: str, path: str, allowed: set[str]) -> None:
    answer = router.send(method, path)
    assert answer.refusal == (405, "method_not_allowed")
    assert allowed <= {name.strip() for name in answer.header("Allow").split(",")}


def test_c081_a_body_too_large_is_json(stage: Stage, router: Router) -> None:
    body = b'{"model":"' + b"x" * (2 << 20) + b'"}'
    assert router.post(CHAT, body, key=stage.owner.key).refusal == (413, "request_too_large")


def test_c082_an_unknown_expectation_is_answered_in_json(stage: Stage, router: Router) -> None:
    headers = [("Expect", "a-miracle"), ("Connection", "close")]
    answer = router.post(CHAT, b"{}", key=stage.owner.key, headers=headers)
    assert answer.status == 417
    assert answer.error_type


@pytest.mark.parametrize(
    ("line", "header", "status"),
    [("/", "X-Long: " + "x" * 20_000, 431), ("/" + "x" * 20_000, "X-Short: x", 414)],
    ids=["head too large", "path too long"],
)
def test_c082_what_is_too_long_is_answered_as_that(router: Router, line: str, header: str, status: int) -> None:
    answer = router.raw(f"GET {line} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode())
    assert answer.status == status
    assert answer.error_type


def with_version(version: str, stage: Stage, body: bytes) -> bytes:
    """A chat request of another version of HTTP, as its bytes."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in bearer(stage.owner.key))
    return (
        f"POST {CHAT} HTTP/{version}\r\nHost: localhost\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body
    )


def test_c083_http_1_0_is_answered_or_refused_and_its_receipt_agrees(stage: Stage, router: Router) -> None:
    answer = answer_or_none(router, with_version("1.0", stage, prompt(CHAT, stage.model)))
    assert answer is not None
    assert answer.body
    if answer.status == 200:
        receipt = reader.parse(router.receipt(answer.receipt_id, stage.owner.key).body)
        assert reader.body_hash(receipt, "response.returned") == reader.digest(answer.body)
    else:
        assert answer.error_type


def answer_or_none(router: Router, request: bytes) -> Answer | None:
    """What came of raw bytes; None where the connection ended without an answer."""
    try:
        return router.raw(request)
    except OSError:
        return None


def test_c084_a_compressed_body_is_refused_or_hashed_as_it_came(
    stage: Stage, router: Router, provider: Provider
) -> None:
    body = gzip.compress(prompt(CHAT, PLAIN_MODEL))
    answer = router.post(CHAT, body, key=stage.guest.key, headers=[("Content-Encoding", "gzip")])
    if answer.status == 200:
        receipt = reader.parse(router.receipt(answer.receipt_id, stage.guest.key).body)
        assert reader.body_hash(receipt, "request.received") == reader.digest(body)
    else:
        assert answer.status in (400, 415)
        assert not provider.bodies


def test_c085_the_root_names_the_version_and_the_digest(router: Router) -> None:
    answer = router.get("/")
    assert answer.json["api_version"] == "aci/1"
    assert answer.json["workload_keyset_digest"] == answer.header("X-ACI-Keyset-Digest")


def test_c085_health_is_told_to_everybody(router: Router) -> None:
    answer = router.get("/health")
    assert (answer.status, answer.json) == (200, {"status": "ok"})


@pytest.mark.parametrize("kind", STREAMS)
def test_c071_a_stream_says_that_it_is_one(exchanges: Exchanges, kind: str) -> None:
    answer = exchanges[kind].answer
    assert answer.header("Content-Type").startswith("text/event-stream")
    assert answer.header("Cache-Control") == "no-cache"
