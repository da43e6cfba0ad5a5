from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.aci.encoding import digest
from libs.aci.endpoints import CHAT, EMBEDDINGS, EVENT_STREAM, MESSAGES, RESPONSES, Endpoint
from libs.aci.json_values import FEW_VALUES
from libs.aci.usage import Tokens
from services.router.errors import LedgerUnavailable, UpstreamFailed
from services.router.exchange.notices import MOST_VALUES
from services.router.exchange.withholding import BufferedResponse, StreamedResponse, withhold

DONE = b"data: [DONE]\n\n"
GONE = UpstreamFailed("the node went away")


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps({"id": "chatcmpl-1"} | members).encode() + b"\n\n"


FIRST = event(choices=[{"delta": {"content": "a"}, "finish_reason": None}])
FINISH = event(choices=[{"delta": {}, "finish_reason": "stop"}])
USAGE = event(choices=[], usage={"total_tokens": 2})


def released_by(response: StreamedResponse, *chunks: bytes) -> bytes:
    released = b""
    for chunk in chunks:
        events = response.feed(chunk)
        released += response.release(events, response.read(events))
    return released


def stream(*chunks: bytes, endpoint: Endpoint = CHAT) -> tuple[StreamedResponse, bytes]:
    response = StreamedResponse(endpoint)
    return response, released_by(response, *chunks)


def test_stream_goes_out_up_to_the_finish_reason_and_the_hash_covers_all() -> None:
    response, released = stream(FIRST + FIRST[:9], FIRST[9:] + FINISH + USAGE, DONE)
    response.complete()
    assert released == FIRST * 2
    assert response.withheld == FINISH + USAGE + DONE
    assert response.body_hash == digest(FIRST * 2 + FINISH + USAGE + DONE)
    assert response.chat_id == "chatcmpl-1"


def test_nothing_is_released_after_the_finish_reason() -> None:
    response, _ = stream(FINISH)
    assert released_by(response, FIRST) == b""
    assert released_by(response, b": keepalive\n\n") == b""


def test_clean_end_without_the_terminal_gets_it_inside_the_hash() -> None:
    response, released = stream(FIRST, FINISH)
    response.complete()
    assert response.withheld == FINISH + DONE
    assert response.body_hash == digest(released + FINISH + DONE)


@pytest.mark.parametrize("tail", [b"data: {", b'data: {"a":1}', b'data: {"a":1}\n'])
def test_nothing_is_appended_within_an_event_at_a_clean_end(tail: bytes) -> None:
    response, released = stream(FIRST + tail)
    response.complete()
    assert released == FIRST
    assert response.withheld == tail
    assert response.body_hash == digest(FIRST + tail)


@pytest.mark.parametrize(
    "end",
    [
        event(type="message_delta"),
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        event(type="error", error={}),
    ],
)
def test_messages_get_no_tail_at_a_clean_end(end: bytes) -> None:
    response, released = stream(event(type="content_block_delta"), end, endpoint=MESSAGES)
    response.complete()
    assert released == event(type="content_block_delta")
    assert response.withheld == end


def test_in_band_error_of_the_upstream_is_withheld_and_gets_no_tail() -> None:
    error = event(error={"message": "out of memory"})
    for end in (StreamedResponse.complete, lambda response: response.fail(GONE)):
        response, released = stream(FIRST, error)
        end(response)
        assert (released, response.withheld) == (FIRST, error)


def test_failure_between_events_appends_the_error_of_the_protocol_withheld() -> None:
    response, released = stream(FIRST)
    response.fail(GONE)
    assert released == FIRST
    assert response.withheld.startswith(b'\n\ndata: {"error":{"message":"the node went away","type":"upstream_error"')
    assert response.withheld.endswith(DONE)
    assert response.body_hash == digest(released + response.withheld)


def test_failure_before_the_blank_line_dispatches_the_whole_event_first() -> None:
    response, _ = stream(FIRST[:-1])
    response.fail(GONE)
    assert response.withheld.startswith(FIRST[:-1] + b"\n\ndata: ")
    assert response.body_hash == digest(response.withheld)


def test_failure_within_an_event_appends_nothing() -> None:
    response, _ = stream(FIRST, b'data: {"id":"chat')
    response.fail(GONE)
    assert response.withheld == b'data: {"id":"chat'


def test_failure_after_the_terminal_appends_nothing() -> None:
    response, _ = stream(FINISH, DONE)
    response.fail(GONE)
    assert response.withheld == FINISH + DONE


def test_error_of_responses_continues_the_sequence_of_what_went_out() -> None:
    first, last = event(type="response.created", sequence_number=4), event(type="response.completed", sequence_number=9)
    response, _ = stream(first, last, endpoint=RESPONSES)
    assert b'"sequence_number":5}' in response.error_end(LedgerUnavailable("no answer"))
    response, _ = stream(first, endpoint=RESPONSES)
    response.fail(GONE)
    assert b'"sequence_number":5}' in response.withheld


def test_end_withheld_for_ever_is_replaced_and_the_hash_says_so() -> None:
    response, released = stream(FIRST, FINISH, DONE)
    response.complete()
    end = response.error_end(LedgerUnavailable("the ledger did not answer"))
    assert b'"type":"ledger_unavailable","code":503' in end
    assert response.emitted_hash(end) == digest(released + end)
    assert response.emitted_hash() == digest(released)
    assert response.body_hash == digest(released + FINISH + DONE)


@given(
    st.lists(st.sampled_from([FIRST, FINISH, USAGE, DONE, b": x\n\n", b": x\r", b"\r\n"]), max_size=8).map(b"".join),
    st.lists(st.integers(1, 40), max_size=20),
)
def test_released_and_withheld_bytes_are_the_stream_in_any_chunking(body: bytes, sizes: list[int]) -> None:
    response = StreamedResponse(CHAT)
    released, rest = b"", body
    for size in sizes:
        released += released_by(response, rest[:size])
        rest = rest[size:]
    released += released_by(response, rest)
    assert released + response.withheld == body
    assert response.body_hash == digest(body)
    assert b'"finish_reason": "stop"' not in released
    assert b"[DONE]" not in released


def test_endless_event_is_refused_and_what_was_not_returned_keeps_its_place() -> None:
    response = StreamedResponse(CHAT, limit=1000)
    with pytest.raises(UpstreamFailed):
        released_by(response, FIRST + FINISH + b"data: " + b"x" * 1000)
    assert response.withheld.startswith(FIRST + FINISH + b"data: xxx")
    assert response.body_hash == digest(response.withheld)


def test_buffered_response_is_withheld_whole() -> None:
    response = BufferedResponse(CHAT, limit=64)
    response.feed(b'{"id":')
    response.feed(b'"chatcmpl-2"}')
    response.complete()
    assert response.withheld == b'{"id":"chatcmpl-2"}'
    assert response.body_hash == digest(b'{"id":"chatcmpl-2"}')


def test_a_buffered_response_says_what_its_owner_has_read() -> None:
    response = BufferedResponse(CHAT)
    response.feed(b'{"id":"chatcmpl-2","usage":{"prompt_tokens":7,"completion_tokens":2}}')
    said = response.read()
    assert (response.chat_id, response.tokens) == (None, Tokens())
    response.said = said
    assert (response.chat_id, response.tokens) == ("chatcmpl-2", Tokens(7, 2))
    response.fail(GONE)
    assert (response.chat_id, response.tokens) == (None, Tokens())


def test_events_that_were_not_read_are_not_there_and_nothing_takes_their_place() -> None:
    response, released = stream(FIRST)
    assert response.feed(FIRST + FINISH + FIRST[:9]) == [FIRST, FINISH]
    response.fail(GONE)
    assert released == FIRST
    assert response.withheld.startswith(b'\n\ndata: {"error":{"message":"the node went away"')
    assert response.body_hash == digest(released + response.withheld)


@pytest.mark.parametrize("protocol", [CHAT, RESPONSES], ids=["chat", "responses"])
def test_an_event_of_more_values_than_are_read_is_taken_for_the_end(protocol: Endpoint) -> None:
    many = b'data: {"id":"chatcmpl-1","x":[' + b"0," * MOST_VALUES + b"0]}\n\n"
    response, released = stream(event(), many, event(), endpoint=protocol)
    assert (released, response.withheld) == (event(), many + event())


def test_where_a_long_event_stops_before_its_blank_line_nothing_is_appended() -> None:
    unfinished = b'data: {"x":[' + b"0," * FEW_VALUES + b"0]}\n"
    response, _ = stream(unfinished)
    response.fail(GONE)
    assert response.withheld == unfinished


def test_buffered_response_that_breaks_off_becomes_the_error() -> None:
    response = BufferedResponse(CHAT)
    response.feed(b'{"id":"chat')
    response.fail(GONE)
    assert response.withheld == GONE.body
    assert response.body_hash == digest(GONE.body)
    unlogged = LedgerUnavailable("no answer")
    assert response.error_end(unlogged) == unlogged.body
    assert response.emitted_hash(unlogged.body) == digest(unlogged.body)


def test_buffered_response_over_the_limit_is_refused() -> None:
    with pytest.raises(UpstreamFailed):
        BufferedResponse(CHAT, limit=3).feed(b"1234")


@pytest.mark.parametrize(
    ("stream_asked", "status", "content_type", "streamed"),
    [
        (True, 200, "text/event-stream; charset=utf-8", True),
        (True, 200, "Text/Event-Stream", True),
        (True, 200, "", True),
        (True, 200, "application/json", False),
        (True, 429, "text/event-stream", False),
        (False, 200, "text/event-stream", False),
    ],
)
def test_only_a_successful_stream_that_was_asked_for_goes_out_in_parts(
    stream_asked: bool, status: int, content_type: str, streamed: bool
) -> None:
    response = withhold(CHAT, stream=stream_asked, status=status, content_type=content_type)
    assert isinstance(response, StreamedResponse) is streamed


def test_an_answer_of_an_endpoint_that_does_not_stream_is_withheld_whole() -> None:
    assert isinstance(withhold(EMBEDDINGS, stream=True, status=200, content_type=EVENT_STREAM), BufferedResponse)


def test_an_answer_of_anthropics_that_fails_is_its_error() -> None:
    response = BufferedResponse(MESSAGES)
    response.feed(b'{"type":"message"}')
    response.fail(GONE)
    assert (json.loads(response.withheld)["type"], json.loads(response.withheld)["error"]["type"]) == (
        "error",
        "api_error",
    )
    _, _, data = stream(endpoint=MESSAGES)[0].error_end(GONE).partition(b"data: ")
    assert json.loads(data)["error"]["type"] == "api_error"
