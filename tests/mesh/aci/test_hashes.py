"""What the hashes of a receipt are over (section 7.4)."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import (
    ALL,
    DONE,
    FINISHED,
    REFUSED,
    SERVED,
    STREAMED,
    Exchange,
    Exchanges,
    constrained,
    exchange,
    prompt,
)
from tests.mesh.aci.provider import EVENTS, Piece, Provider
from tests.mesh.aci.stage import PLAIN_MODEL, RENAMED_MODEL, Stage
from tests.mesh.aci.wire import CHAT, COMPLETIONS, Answer, Router, bearer

pytestmark = pytest.mark.mesh

PATIENCE_SECONDS = 20
ODD_BODY = (
    b'  {\n "stream" : false,\t"messages":[ {"content":"caf\\u00e9 \\ud83d\\ude00 \xc3\xa9", "role":"user"} ],'
    b' "max_tokens":3, "model" : "%s", "unknown": 1.50e2 }\r\n '
)


def returned(known: Exchange) -> str:
    return reader.body_hash(known.receipt, "response.returned")


@pytest.mark.parametrize("kind", ALL)
def test_c133_what_was_received_is_the_body_on_the_wire(exchanges: Exchanges, kind: str) -> None:
    assert reader.body_hash(exchanges[kind].receipt, "request.received") == reader.digest(exchanges[kind].request)


def test_c133_spaces_order_and_escapes_count(stage: Stage, provider: Provider) -> None:
    body = ODD_BODY % PLAIN_MODEL.encode()
    known = exchange(stage, CHAT, body, stage.guest)
    assert reader.body_hash(known.receipt, "request.received") == reader.digest(body)
    assert provider.bodies == [body]


def test_c133_a_body_in_chunks_is_the_same_body(stage: Stage, router: Router, provider: Provider) -> None:
    body = prompt(CHAT, PLAIN_MODEL)
    lines = "".join(f"{name}: {value}\r\n" for name, value in bearer(stage.guest.key))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\n{lines}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    pieces = b"".join(f"1;x=y\r\n{chr(octet)}\r\n".encode("latin-1") for octet in body)
    answer = router.raw(head.encode() + pieces + b"0\r\n\r\n")
    assert answer.status == 200
    receipt = reader.parse(router.receipt(answer.receipt_id, stage.guest.key).body)
    assert reader.body_hash(receipt, "request.received") == reader.digest(body)
    assert reader.body_hash(receipt, "response.returned") == reader.digest(answer.body)


@pytest.mark.parametrize(
    "name", ["X-Body-Hash", "Digest", "Content-Digest", "X-Request-Body-Hash", "X-Content-SHA256", "Repr-Digest"]
)
def test_c134_a_hash_that_the_client_sends_changes_nothing(stage: Stage, provider: Provider, name: str) -> None:
    body = prompt(CHAT, PLAIN_MODEL)
    known = exchange(stage, CHAT, body, stage.guest, headers=[(name, "sha256:" + "00" * 32)])
    assert reader.body_hash(known.receipt, "request.received") == reader.digest(body)
    assert reader.body_hash(known.receipt, "request.forwarded") == reader.digest(body)


@pytest.mark.parametrize("kind", SERVED)
def test_c135_what_was_forwarded_is_said(exchanges: Exchanges, kind: str) -> None:
    assert len(reader.events(exchanges[kind].receipt, "request.forwarded")) == 1


@pytest.mark.parametrize("kind", REFUSED)
def test_c135_nothing_is_said_of_forwarding_where_nothing_was(exchanges: Exchanges, kind: str) -> None:
    assert not reader.events(exchanges[kind].receipt, "request.forwarded")


@pytest.mark.parametrize(
    ("model", "provider_member"),
    [(PLAIN_MODEL, None), (PLAIN_MODEL, {"aci_verified": False}), (RENAMED_MODEL, None), (RENAMED_MODEL, {"x": [1]})],
)
def test_c136_what_was_forwarded_is_what_the_upstream_got(
    stage: Stage, provider: Provider, model: str, provider_member: Any
) -> None:
    known = exchange(stage, CHAT, constrained(model, provider_member), stage.guest)
    assert len(provider.bodies) == 1
    assert reader.body_hash(known.receipt, "request.forwarded") == reader.digest(provider.bodies[0])


@pytest.mark.parametrize("kind", ["chat", "completion", "verified", "pinned", "unverified", "renamed"])
def test_c137_a_buffered_answer_is_hashed_as_it_came(exchanges: Exchanges, kind: str) -> None:
    assert returned(exchanges[kind]) == reader.digest(exchanges[kind].answer.body)


@pytest.mark.parametrize("kind", ["streamed chat", "streamed completion", "unverified stream"])
def test_c138_a_stream_is_hashed_with_its_framing(exchanges: Exchanges, kind: str) -> None:
    known = exchanges[kind]
    assert known.answer.body.endswith(DONE)
    assert returned(known) == reader.digest(known.answer.body)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_c138_a_stream_is_the_same_however_it_is_cut(stage: Stage, provider: Provider, size: int) -> None:
    whole = STREAMED + STREAMED.replace(b'"a"', '"é\U0001f600"'.encode()) + FINISHED + DONE
    pieces = tuple(whole[begin : begin + size] for begin in range(0, len(whole), size))
    provider.answers(*pieces, content_type=EVENTS)
    known = exchange(stage, CHAT, prompt(CHAT, PLAIN_MODEL, stream=True), stage.guest)
    assert known.answer.body == whole
    assert returned(known) == reader.digest(whole)


@pytest.mark.parametrize("kind", REFUSED)
def test_c139_a_refusal_is_hashed_too(exchanges: Exchanges, kind: str) -> None:
    assert returned(exchanges[kind]) == reader.digest(exchanges[kind].answer.body)


def streamed(stage: Stage, provider: Provider, *pieces: Piece) -> Exchange:
    """An exchange whose upstream sends these bytes as events."""
    provider.answers(*pieces, content_type=EVENTS)
    return exchange(stage, CHAT, prompt(CHAT, PLAIN_MODEL, stream=True), stage.guest)


@pytest.mark.parametrize("pieces", [(STREAMED, FINISHED), (STREAMED,), ()], ids=["finished", "unfinished", "empty"])
def test_c140_a_stream_without_its_end_is_given_it_within_the_hash(
    stage: Stage, provider: Provider, pieces: tuple[bytes, ...]
) -> None:
    known = streamed(stage, provider, *pieces)
    assert known.answer.body == b"".join(pieces) + DONE
    assert returned(known) == reader.digest(known.answer.body)


def test_c140_a_stream_with_its_end_is_given_no_other(stage: Stage, provider: Provider) -> None:
    known = streamed(stage, provider, STREAMED, FINISHED, DONE)
    assert known.answer.body == STREAMED + FINISHED + DONE


def broken_off(stage: Stage, provider: Provider, events: bytes, begun: bytes = b"") -> Exchange:
    """An exchange whose upstream breaks off once the client has these events; it had begun another."""
    gate = threading.Event()
    provider.answers(events + begun, gate, content_type=EVENTS, breaks=True)
    body = prompt(CHAT, PLAIN_MODEL, stream=True)
    with stage.router.connected() as conversation:
        response = conversation.begin("POST", CHAT, body, bearer(stage.guest.key))
        received = response.read(len(events))
        gate.set()
        answer = Answer(response.status, tuple(response.getheaders()), received + response.read())
    fetched = stage.router.receipt(answer.receipt_id, stage.guest.key)
    return Exchange(CHAT, body, answer, reader.parse(fetched.body), time.time())


def test_c142_an_upstream_that_breaks_off_between_events_is_told_within_the_hash(
    stage: Stage, provider: Provider
) -> None:
    known = broken_off(stage, provider, STREAMED)
    assert known.answer.body.startswith(STREAMED)
    told = known.answer.body.removeprefix(STREAMED).strip().split(b"\n\n")
    assert json.loads(told[0].removeprefix(b"data: "))["error"]["type"] == "upstream_error"
    assert told[-1] == DONE.strip()
    assert returned(known) == reader.digest(known.answer.body)


def test_c143_nothing_is_added_within_an_event(stage: Stage, provider: Provider) -> None:
    known = broken_off(stage, provider, STREAMED, STREAMED[:30])
    assert known.answer.body == STREAMED + STREAMED[:30]
    assert returned(known) == reader.digest(known.answer.body)


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize(("status", "served"), [(400, 400), (422, 422), (401, 502), (429, 502), (500, 502), (503, 502)])
def test_c144_an_upstreams_refusal_has_a_receipt_over_what_was_served(
    stage: Stage, provider: Provider, status: int, served: int, stream: bool
) -> None:
    provider.answers(b'{"error":{"message":"no","type":"x","code":null,"param":null}}', status=status)
    known = exchange(stage, CHAT, prompt(CHAT, PLAIN_MODEL, stream=stream), stage.guest)
    assert known.answer.status == served
    assert returned(known) == reader.digest(known.answer.body)


def test_c146_a_client_that_leaves_has_a_receipt_over_what_it_got(
    stage: Stage, router: Router, provider: Provider, keyset: dict[str, Any]
) -> None:
    gate = threading.Event()
    provider.answers(STREAMED, gate, FINISHED, content_type=EVENTS)
    with router.connected() as conversation:
        response = conversation.begin("POST", CHAT, prompt(CHAT, PLAIN_MODEL, stream=True), bearer(stage.guest.key))
        receipt_id = str(response.getheader("X-Receipt-Id"))
        assert response.read(len(STREAMED)) == STREAMED
    ends_at = time.monotonic() + PATIENCE_SECONDS
    while (fetched := router.receipt(receipt_id, stage.guest.key)).status == 404:
        assert time.monotonic() < ends_at
    gate.set()
    receipt = reader.parse(fetched.body)
    assert reader.signature_holds(receipt, keyset)
    assert reader.body_hash(receipt, "response.returned") == reader.digest(STREAMED)
    assert [event["reason"] for event in reader.events(receipt, "teemesh.abort")] == ["client_disconnected"]


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_c136_an_untouched_body_is_forwarded_as_it_came(stage: Stage, endpoint: str) -> None:
    known = exchange(stage, endpoint, prompt(endpoint, stage.model), stage.owner)
    assert reader.body_hash(known.receipt, "request.forwarded") == reader.digest(known.request)
