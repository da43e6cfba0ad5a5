"""Nothing of an answer to an encrypted request goes out in clear, however it comes and however it ends."""

from __future__ import annotations

import json

import pytest

from libs.aci.e2ee.binding import Binding
from libs.aci.e2ee.suites import SUITES, X25519_ALGO
from libs.aci.sse import DONE
from services.router.e2ee.answers import MAX_BYTES, cover
from services.router.e2ee.opening import Envelope
from services.router.errors import UpstreamFailed
from services.router.workload.workload import E2eeKey
from tests.fakes.sealed_prompts import Client

KEY = E2eeKey.generate(SUITES[X25519_ALGO])
SECRET = "what-was-said"


@pytest.fixture
def client() -> Client:
    return Client(KEY, KEY.suite.key())


@pytest.fixture
def envelope(client: Client) -> Envelope:
    binding = Binding(KEY.suite.algo, client.model, client.nonce, client.timestamp)
    return Envelope(KEY.suite, KEY.key_id, client.private.public, binding)


def event(**members: object) -> bytes:
    return b"data: " + json.dumps(members).encode() + b"\n\n"


def test_an_answer_in_clear_goes_through_as_it_is() -> None:
    clear = cover(None, streams=True, status=200)
    assert (clear.feed(b"da"), clear.feed(b"ta"), clear.finish(), clear.suite) == (b"da", b"ta", b"", None)


def test_a_body_goes_out_only_when_it_is_whole(client: Client, envelope: Envelope) -> None:
    body = cover(envelope, streams=False, status=200)
    text = json.dumps({"id": "x", "choices": [{"message": {"content": SECRET}}], "usage": {"n": 1}}).encode()
    assert [body.feed(text[position : position + 1]) for position in range(len(text))] == [b""] * len(text)
    sealed = json.loads(body.finish())
    assert sealed["usage"] == {"n": 1}
    value = sealed["choices"][0]["message"]["content"]
    assert client.open("choices.0.message.content", value, "x") == SECRET
    assert body.suite == KEY.suite.algo


def test_a_stream_is_sealed_event_by_event_however_it_is_cut(client: Client, envelope: Envelope) -> None:
    raw = b"".join(
        [
            b": said in a comment\r\n\r\n",
            event(id="x", choices=[{"index": 1, "delta": {"content": SECRET}}]),
            b"event: what-was-said\nid: 7\n" + event(choices=[{"delta": {"content": SECRET}}]),
            DONE,
        ]
    )
    whole = cover(envelope, streams=True, status=200)
    cut = cover(envelope, streams=True, status=200)
    pieces = [cut.feed(raw[position : position + 1]) for position in range(len(raw))]
    for out in (whole.feed(raw) + whole.finish(), b"".join(pieces) + cut.finish()):
        assert b"said" not in out
        comment, first, second, done, rest = out.split(b"\n\n")
        assert (comment, done, rest) == (b":", b"data: [DONE]", b"")
        for data, position, response_id in ((first, 1, "x"), (second, 0, "")):
            value = json.loads(data.removeprefix(b"data: "))["choices"][0]["delta"]["content"]
            assert client.open(f"choices.{position}.delta.content", value, response_id) == SECRET


@pytest.mark.parametrize(
    "text",
    [
        b"what-was-said",
        b'"what-was-said"',
        b'["what-was-said"]',
        b'{"choices":["what-was-said"]}',
        b'{"choices":[{"message":{"content":"\\ud800"}}]}',
        b'{"id":"\\ud800","choices":[{"message":{"content":"what-was-said"}}]}',
        b'{"choices":[],"choices":[]}',
        b"",
    ],
)
def test_what_cannot_be_sealed_is_a_failure_of_the_engine(envelope: Envelope, text: bytes) -> None:
    body = cover(envelope, streams=False, status=200)
    body.feed(text)
    with pytest.raises(UpstreamFailed):
        body.finish()
    if text:
        with pytest.raises(UpstreamFailed):
            cover(envelope, streams=True, status=200).feed(b"data: " + text + b"\n\n")


def test_a_stream_that_ends_within_an_event_says_nothing_of_it(envelope: Envelope) -> None:
    stream = cover(envelope, streams=True, status=200)
    assert stream.feed(event(choices=[{"delta": {"content": SECRET}}])[:-3]) == b""
    with pytest.raises(UpstreamFailed):
        stream.finish()


@pytest.mark.parametrize("last", [b"data: [DONE]\n", b"data: [DONE] \n\n", b"data:[DONE]\r\r", b"data: [DONE]\r\n"])
def test_a_last_event_need_not_be_dispatched(client: Client, envelope: Envelope, last: bytes) -> None:
    stream = cover(envelope, streams=True, status=200)
    out = stream.feed(event(choices=[{"delta": {"content": SECRET}}]) + last) + stream.finish()
    said, done, rest = out.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    value = json.loads(said.removeprefix(b"data: "))["choices"][0]["delta"]["content"]
    assert client.open("choices.0.delta.content", value) == SECRET


def test_more_than_done_is_not_done(envelope: Envelope) -> None:
    with pytest.raises(UpstreamFailed):
        cover(envelope, streams=True, status=200).feed(b"data: [DONE] what-was-said\n\n")


@pytest.mark.parametrize("streams", [False, True])
def test_an_error_that_an_engine_reports_keeps_its_type_alone(envelope: Envelope, streams: bool) -> None:
    reported = json.dumps({"error": {"type": "context_length", "message": SECRET, "param": SECRET}, "id": SECRET})
    held = cover(envelope, streams=streams, status=200)
    out = held.feed(b"data: " + reported.encode() + b"\n\n" if streams else reported.encode()) + held.finish()
    error = json.loads(out.removeprefix(b"data: "))["error"]
    assert (error["type"], error["param"]) == ("context_length", None)
    assert SECRET.encode() not in out


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b'{"error":{"type":"bad_request","message":"what-was-said"}}', "bad_request"),
        (b'{"error":{"type":"what was said"}}', "upstream_error"),
        (b'{"error":"what-was-said"}', "upstream_error"),
        (b'{"choices":[{"message":{"content":"what-was-said"}}]}', "upstream_error"),
        (b"what-was-said", "upstream_error"),
    ],
)
def test_a_refusal_is_not_called_encrypted_and_has_no_words_of_the_engine(
    envelope: Envelope, text: bytes, named: str
) -> None:
    body = cover(envelope, streams=False, status=400)
    body.feed(text)
    out = body.finish()
    assert body.suite is None
    assert json.loads(out)["error"]["type"] == named
    assert SECRET.encode() not in out


@pytest.mark.parametrize("streams", [False, True])
def test_what_is_kept_back_is_bounded(envelope: Envelope, streams: bool) -> None:
    held = cover(envelope, streams=streams, status=200)
    held.feed(b"x" * MAX_BYTES)
    with pytest.raises(UpstreamFailed):
        held.feed(b"x")


@pytest.mark.parametrize("value", [[0.5, -1.25e-3], "AAAAPw==", []], ids=repr)
def test_an_embedding_is_sealed_as_the_json_of_it(client: Client, envelope: Envelope, value: object) -> None:
    body = cover(envelope, streams=False, status=200)
    body.feed(json.dumps({"object": "list", "data": [{"index": 0, "embedding": value}]}).encode())
    sealed = json.loads(body.finish())["data"][0]["embedding"]
    assert json.loads(client.open("data.0.embedding", sealed, "")) == value
