"""The headers of every response (section 5.2), and of requests (section 5.1)."""

from __future__ import annotations

import http.client
import threading

import pytest

from tests.mesh.aci.exchanges import (
    ALL,
    FINISHED,
    REFUSED,
    SERVED,
    STREAMED,
    Exchanges,
    current_session,
    prompt,
)
from tests.mesh.aci.provider import EVENTS, Provider
from tests.mesh.aci.reports import Challenge
from tests.mesh.aci.stage import PLAIN_MODEL, Stage
from tests.mesh.aci.wire import (
    ATTESTATION,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    RECEIPTS,
    RESPONSES,
    SESSIONS,
    Answer,
    Router,
    bearer,
)

pytestmark = pytest.mark.mesh


def require_headers(answer: Answer, challenged: Challenge) -> None:
    assert answer.header("X-ACI-Version") == "aci/1"
    assert answer.header("X-ACI-Keyset-Digest") == challenged.report["workload_keyset_digest"]


def of_nothing(router: Router, method: str, path: str, key: str | None) -> Answer:
    return router.send(method, path, b"{}" if method == "POST" else None, key=key)


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/v1/models", ATTESTATION, f"{ATTESTATION}?nonce={'ab' * 32}", SESSIONS, "session", "receipt"],
)
def test_c056_every_document_has_both_headers(
    stage: Stage, router: Router, exchanges: Exchanges, challenged: Challenge, path: str
) -> None:
    if path == "session":
        path = f"{SESSIONS}/{current_session(stage)}"
    elif path == "receipt":
        path = f"{RECEIPTS}/{exchanges['chat'].answer.receipt_id}"
    answer = router.get(path, key=stage.owner.key)
    assert answer.status == 200
    require_headers(answer, challenged)


@pytest.mark.parametrize("kind", SERVED)
def test_c056_every_answer_has_both_headers(exchanges: Exchanges, challenged: Challenge, kind: str) -> None:
    require_headers(exchanges[kind].answer, challenged)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{ATTESTATION}?nonce=zz", 400),
        ("GET", "/v1/models", 401),
        ("GET", "/nowhere", 404),
        ("GET", f"{SESSIONS}/{'ab' * 32}", 404),
        ("GET", CHAT, 405),
        ("DELETE", ATTESTATION, 405),
    ],
)
def test_c057_every_refusal_has_both_headers(
    router: Router, challenged: Challenge, method: str, path: str, status: int
) -> None:
    answer = of_nothing(router, method, path, None)
    assert answer.status == status
    require_headers(answer, challenged)


@pytest.mark.parametrize("kind", REFUSED)
def test_c057_every_refused_prompt_has_both_headers(exchanges: Exchanges, challenged: Challenge, kind: str) -> None:
    require_headers(exchanges[kind].answer, challenged)


def test_c057_a_body_too_large_has_both_headers(stage: Stage, router: Router, challenged: Challenge) -> None:
    answer = router.post(CHAT, b'"' + b"x" * (2 << 20) + b'"', key=stage.owner.key)
    assert answer.status == 413
    require_headers(answer, challenged)


def test_c057_a_failing_upstream_has_both_headers(
    stage: Stage, router: Router, provider: Provider, challenged: Challenge
) -> None:
    provider.answers(b"{}", status=500)
    answer = router.post(CHAT, prompt(CHAT, PLAIN_MODEL), key=stage.guest.key)
    assert answer.status == 502
    require_headers(answer, challenged)


@pytest.mark.parametrize(
    "header",
    [("Expect", "a-miracle"), ("X-Long", "x" * 20_000), ("Content-Encoding", "br"), ("Content-Type", "text/plain")],
    ids=lambda header: header[0],
)
def test_c058_what_no_client_should_send_is_answered_with_both_headers(
    stage: Stage, router: Router, challenged: Challenge, header: tuple[str, str]
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in [*bearer(stage.owner.key), header])
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: 2\r\nConnection: close\r\n\r\n"
    answer = router.raw(head.encode() + b"{}")
    assert 400 <= answer.status < 500
    require_headers(answer, challenged)


def test_c058_a_path_without_end_is_answered_with_both_headers(router: Router, challenged: Challenge) -> None:
    answer = router.raw(b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert 400 <= answer.status < 500
    require_headers(answer, challenged)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nNo colon here\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_c059_what_is_no_http_is_answered_with_both_headers(
    router: Router, challenged: Challenge, request_bytes: bytes
) -> None:
    answer = router.raw(request_bytes)
    assert answer.refusal == (400, "invalid_request_error")
    require_headers(answer, challenged)


@pytest.mark.parametrize("path", [CHAT, ATTESTATION, "/nowhere"])
def test_c060_a_preflight_has_both_headers(router: Router, challenged: Challenge, path: str) -> None:
    headers = [("Origin", "https://elsewhere.example"), ("Access-Control-Request-Method", "POST")]
    require_headers(router.send("OPTIONS", path, headers=headers), challenged)


def test_c060_a_preflight_is_answered(router: Router) -> None:
    headers = [("Origin", "https://elsewhere.example"), ("Access-Control-Request-Method", "POST")]
    answer = router.send("OPTIONS", CHAT, headers=headers)
    assert answer.status in (200, 204)
    assert answer.header("Access-Control-Allow-Origin") in ("*", "https://elsewhere.example")


@pytest.mark.parametrize("path", ["/", "/health", ATTESTATION])
def test_c061_a_head_has_both_headers(router: Router, challenged: Challenge, path: str) -> None:
    answer = router.send("HEAD", path)
    assert (answer.status, answer.body) == (200, b"")
    require_headers(answer, challenged)


def test_c062_the_digest_is_that_of_the_report_on_the_same_connection(router: Router) -> None:
    with router.connected() as conversation:
        report = conversation.send("GET", f"{ATTESTATION}?nonce={'cd' * 32}")
        after = conversation.send("GET", "/health")
        listed = {key["spki_sha256"] for key in report.json["attestation"]["workload_keyset"]["tls_public_keys"]}
        assert conversation.spki_sha256 in listed
    digest = report.json["workload_keyset_digest"]
    assert digest == report.header("X-ACI-Keyset-Digest") == after.header("X-ACI-Keyset-Digest")


@pytest.mark.parametrize("kind", ["chat", "completion", "unverified"])
def test_c063_a_buffered_answer_names_its_receipt(exchanges: Exchanges, kind: str) -> None:
    assert exchanges[kind].answer.receipt_id == exchanges[kind].receipt["receipt_id"]


def test_c064_a_stream_names_its_receipt_before_there_is_one(
    stage: Stage, router: Router, provider: Provider, challenged: Challenge
) -> None:
    gate = threading.Event()
    provider.answers(STREAMED, gate, FINISHED, content_type=EVENTS)
    body = prompt(CHAT, PLAIN_MODEL, stream=True)
    with router.connected() as conversation:
        response = conversation.begin("POST", CHAT, body, bearer(stage.guest.key))
        head = _head_of(response)
        assert response.read(len(STREAMED)) == STREAMED
        named = router.receipt(head.receipt_id, stage.guest.key).status
        gate.set()
        response.read()
    assert (head.status, named) == (200, 404)
    require_headers(head, challenged)
    assert router.receipt(head.receipt_id, stage.guest.key).status == 200


def _head_of(response: http.client.HTTPResponse) -> Answer:
    return Answer(response.status, tuple(response.getheaders()), b"")


@pytest.mark.parametrize("kind", ["unknown pin", "unverifiable"])
def test_c065_a_refusal_of_aci_names_its_receipt(exchanges: Exchanges, kind: str) -> None:
    assert exchanges[kind].answer.receipt_id == exchanges[kind].receipt["receipt_id"]


@pytest.mark.parametrize("kind", ["malformed", "unknown model"])
def test_c066_every_refusal_of_a_tenant_names_its_receipt(exchanges: Exchanges, kind: str) -> None:
    assert exchanges[kind].answer.receipt_id == exchanges[kind].receipt["receipt_id"]


def test_c066_a_body_too_large_names_its_receipt(stage: Stage, router: Router) -> None:
    answer = router.post(CHAT, b'"' + b"x" * (2 << 20) + b'"', key=stage.owner.key)
    assert answer.status == 413
    assert router.receipt(answer.receipt_id, stage.owner.key).status == 200


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES])
def test_c067_every_prompt_endpoint_names_receipts(stage: Stage, router: Router, endpoint: str) -> None:
    answer = router.post(endpoint, prompt(endpoint, stage.model), key=stage.owner.key)
    assert answer.receipt_id


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "Bearer   {}", "  Bearer {}  "])
def test_c068_a_key_is_read_in_each_form(stage: Stage, router: Router, form: str) -> None:
    headers = [("Authorization", form.format(stage.owner.key))]
    assert router.get("/v1/models", headers=headers).status == 200


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "bearer   ", "Basic {}", "{}", ""])
def test_c068_an_empty_key_is_none(stage: Stage, router: Router, value: str) -> None:
    headers = [("Authorization", value.format(stage.owner.key))]
    assert router.get("/v1/models", headers=headers).refusal == (401, "unauthorized")


def test_c069_two_keys_are_refused(stage: Stage, router: Router) -> None:
    headers = [*bearer(stage.owner.key), *bearer(stage.other.key)]
    assert router.get("/v1/models", headers=headers).refusal == (400, "invalid_request_error")


@pytest.mark.parametrize("kind", ALL)
def test_c181_the_digest_of_header_report_and_receipt_is_one(
    router: Router, exchanges: Exchanges, challenged: Challenge, kind: str
) -> None:
    digest = challenged.report["workload_keyset_digest"]
    assert exchanges[kind].answer.header("X-ACI-Keyset-Digest") == digest
    assert exchanges[kind].receipt["workload_keyset_digest"] == digest
    assert router.get("/").json["workload_keyset_digest"] == digest
