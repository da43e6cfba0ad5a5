"""How many tokens an answer is at least: an event is one, and a long text is several, whoever's protocol it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs.aci.endpoints import CHAT
from libs.aci.sse import EventSplitter
from services.router.exchange.notices import notice
from services.router.exchange.volume import Volume


def event(members: Any) -> bytes:
    return b"data: " + json.dumps(members).encode() + b"\n\n"


def tokens_of(*pieces: bytes) -> int:
    """Of a stream that comes in these pieces."""
    splitter, volume = EventSplitter(), Volume()
    for piece in pieces:
        for raw in splitter.split(piece):
            volume.add_event(notice(raw, CHAT.protocol).octets)
    return volume.tokens()


@pytest.mark.parametrize(
    "members",
    [
        {"choices": [{"delta": {"content": "four" * 10}}]},
        {"choices": [{"delta": {"reasoning_content": "four" * 10}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "four" * 10}}]}}]},
        {"choices": [{"text": "four" * 10}]},
        {"choices": [{"text": "four" * 5}, {"text": "four" * 5}]},
        {"type": "content_block_delta", "delta": {"text": "four" * 10}},
        {"type": "response.output_text.delta", "delta": "four" * 10},
        {"type": "response.output_text.delta", "delta": "€" * 10 + "four" * 2 + "ab"},
    ],
    ids=str,
)
def test_what_an_event_adds_counts_by_its_length(members: dict[str, Any]) -> None:
    assert tokens_of(event(members)) == 10


def test_an_event_is_a_token_however_it_is_cut() -> None:
    stream = event({"choices": [{"delta": {"content": "a"}}]}) * 7 + b": alive\n\ndata: [DONE]\n\n"
    assert tokens_of(*(bytes([octet]) for octet in stream)) == 7


@pytest.mark.parametrize("data", [b"data: [1]\n\n", b"data: {\n\n", b"\n\n", b"data: [DONE]\n\n", b"\xff"])
def test_what_is_no_part_of_an_answer_counts_as_nothing(data: bytes) -> None:
    assert tokens_of(data) == 0


def test_depth_is_no_harm() -> None:
    assert tokens_of(b'data: {"delta":' + b"[" * 900 + b'"four"' + b"]" * 900 + b"}\n\n") == 1


def test_a_lone_surrogate_is_no_harm() -> None:
    assert tokens_of(b'data: {"delta":"\\ud800"}\n\n') == 1


def test_a_whole_answer_counts_by_its_length() -> None:
    volume = Volume()
    volume.add(4)
    volume.add(1)
    assert volume.tokens() == 2
