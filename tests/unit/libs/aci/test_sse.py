from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.aci import sse
from libs.aci.sse import EventSplitter, Mark, Protocol

FRAGMENTS = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"data: ", b"event: x", b'{"a":1}', b"[DONE]", b":", b"\xff", b"\xef\xbb\xbf"]
    ),
    max_size=30,
).map(b"".join)


def chunked(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


def split(chunks: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event.raw for chunk in chunks for event in splitter.feed(chunk)]
    return events, splitter.tail


@given(FRAGMENTS | st.binary(max_size=200), st.lists(st.integers(0, 500), max_size=12))
def test_no_byte_is_changed_and_chunking_changes_no_event(stream: bytes, cuts: list[int]) -> None:
    events, tail = split(chunked(stream, cuts))
    assert b"".join(events) + tail == stream
    assert (events, tail) == split([stream])
    assert (events, tail) == split([bytes([byte]) for byte in stream])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_each_line_end_ends_events(end: bytes) -> None:
    stream = b"event: a" + end + b"data: 1" + end + b"data: 2" + end + end + b"data: 3" + end + end + b"x"
    splitter = EventSplitter()
    first, second = splitter.feed(stream)
    assert (first.event, first.data) == ("a", "1\n2")
    assert (second.event, second.data) == (None, "3")
    assert splitter.tail == b"x"
    assert splitter.pending == 1


def test_crlf_cut_in_two_is_one_line_end() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b"data: 1\r") == []
    assert splitter.feed(b"\ndata: 2\r\n\r") == []
    (event,) = splitter.feed(b"\n")
    assert event.data == "1\n2"
    assert splitter.at_boundary()


def test_byte_order_mark_comments_and_other_fields_are_not_data() -> None:
    event = sse.parse_event(b"\xef\xbb\xbfdata:x\n: note\nid: 7\nretry\n\n")
    assert (event.event, event.data) == (None, "x")


@pytest.mark.parametrize(
    ("tail", "boundary", "between"),
    [
        (b"", True, True),
        (b"\n", True, True),
        (b'data: {"a":1}\n', False, True),
        (b"data: [DONE]\n", False, True),
        (b": note\n", False, True),
        (b'data: {"a":1}', False, False),
        (b'data: {"a":\n', False, False),
        (b"dat", False, False),
    ],
)
def test_cut_within_an_event_is_told_from_a_stop_between_events(tail: bytes, boundary: bool, between: bool) -> None:
    splitter = EventSplitter()
    splitter.feed(b"data: {}\n\n" + tail)
    assert splitter.at_boundary() is boundary
    assert splitter.between_events() is between


def chat(**members: Any) -> bytes:
    return b"data: " + json.dumps(members).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("protocol", "raw", "expected"),
    [
        (Protocol.CHAT, chat(choices=[{"delta": {"content": "finish_reason"}, "finish_reason": None}]), Mark.CONTENT),
        (Protocol.CHAT, chat(choices=[{"finish_reason": None}, {"finish_reason": "stop"}]), Mark.FINISH),
        (Protocol.CHAT, chat(choices=[{"finish_reason": "length"}]), Mark.FINISH),
        (Protocol.CHAT, chat(choices=[], usage={"total_tokens": 1}), Mark.CONTENT),
        (Protocol.CHAT, chat(error={"message": "x"}), Mark.ERROR),
        (Protocol.CHAT, b"data: [DONE]\n\n", Mark.TERMINAL),
        (Protocol.CHAT, b"data: [DONE] \n\n", Mark.TERMINAL),
        (Protocol.CHAT, b": keepalive\n\n", Mark.CONTENT),
        (Protocol.CHAT, chat(choices="x"), Mark.CONTENT),
        (Protocol.MESSAGES, chat(type="content_block_delta"), Mark.CONTENT),
        (Protocol.MESSAGES, chat(type="message_delta", delta={"stop_reason": "end_turn"}), Mark.FINISH),
        (Protocol.MESSAGES, b"event: message_stop\ndata: {}\n\n", Mark.TERMINAL),
        (Protocol.MESSAGES, chat(type="error"), Mark.ERROR),
        (Protocol.RESPONSES, chat(type="response.output_text.delta"), Mark.CONTENT),
        (Protocol.RESPONSES, chat(type="response.completed"), Mark.TERMINAL),
        (Protocol.RESPONSES, chat(type="response.incomplete"), Mark.TERMINAL),
        (Protocol.RESPONSES, chat(type=["error"]), Mark.CONTENT),
        (Protocol.RESPONSES, b"data: [DONE]\n\n", Mark.CONTENT),
    ],
)
def test_end_of_each_protocol_is_recognised(protocol: Protocol, raw: bytes, expected: Mark) -> None:
    assert sse.mark(sse.parse_event(raw), protocol) is expected


@pytest.mark.parametrize(
    ("protocol", "members", "expected"),
    [
        (Protocol.CHAT, {"id": "chatcmpl-1"}, "chatcmpl-1"),
        (Protocol.MESSAGES, {"type": "message_start", "message": {"id": "msg_1"}}, "msg_1"),
        (Protocol.RESPONSES, {"type": "response.created", "response": {"id": "resp_1"}}, "resp_1"),
        (Protocol.CHAT, {"id": 7}, None),
        (Protocol.CHAT, {"id": "x" * 257}, None),
        (Protocol.CHAT, {"id": "ü"}, None),
        (Protocol.MESSAGES, {"message": []}, None),
    ],
)
def test_response_id_is_found_where_each_protocol_has_it(
    protocol: Protocol, members: dict[str, Any], expected: str | None
) -> None:
    assert sse.id_of(sse.parse_event(chat(**members)).json() or {}, protocol) == expected


def test_error_event_dispatches_what_was_pending_and_ends_the_protocol_its_own_way() -> None:
    splitter = EventSplitter()
    end = sse.error_event(Protocol.CHAT, "upstream_error", "gone", status=502)
    pending, error, done = splitter.feed(b'data: {"a":1}' + end)
    assert pending.data == '{"a":1}'
    assert error.json() == {"error": {"message": "gone", "type": "upstream_error", "code": 502, "param": None}}
    assert sse.mark(done, Protocol.CHAT) is Mark.TERMINAL
    for protocol in (Protocol.MESSAGES, Protocol.RESPONSES):
        event = splitter.feed(sse.error_event(protocol, "upstream_error", "gone", status=502, sequence_number=8))[-1]
        assert event.event == "error"
        assert sse.mark(event, protocol) is Mark.ERROR
    members = event.json()
    assert members is not None
    assert (members["code"], members["sequence_number"]) == ("server_error", 8)
