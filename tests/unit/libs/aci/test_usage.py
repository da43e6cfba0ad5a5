"""What answers say of their tokens, protocol by protocol, and what is not believed."""

from __future__ import annotations

from typing import Any

import pytest

from libs.aci.sse import Protocol, parse_event
from libs.aci.usage import MOST_TOKENS, Tokens, tokens_of, tokens_of_event


@pytest.mark.parametrize(
    ("protocol", "members", "tokens"),
    [
        (Protocol.CHAT, {"usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}, Tokens(3, 5)),
        (Protocol.CHAT, {"usage": {"prompt_tokens": 3, "total_tokens": 3}}, Tokens(3, 0)),
        (Protocol.CHAT, {"usage": None, "choices": []}, Tokens()),
        (Protocol.CHAT, {"usage": {"prompt_tokens": -3, "completion_tokens": True}}, Tokens()),
        (Protocol.CHAT, {"usage": {"prompt_tokens": 3.0, "completion_tokens": MOST_TOKENS + 1}}, Tokens()),
        (Protocol.CHAT, {"usage": [3]}, Tokens()),
        (Protocol.MESSAGES, {"message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}, Tokens(3, 1)),
        (
            Protocol.MESSAGES,
            {"usage": {"input_tokens": 3, "cache_read_input_tokens": 40, "output_tokens": 1}},
            Tokens(43, 1),
        ),
        (Protocol.MESSAGES, {"type": "message_delta", "usage": {"output_tokens": 9}}, Tokens(None, 9)),
        (Protocol.MESSAGES, {"message": 3, "usage": {"input_tokens": 3, "output_tokens": 1}}, Tokens(3, 1)),
        (Protocol.RESPONSES, {"response": {"usage": {"input_tokens": 3, "output_tokens": 1}}}, Tokens(3, 1)),
        (Protocol.RESPONSES, {"usage": {"input_tokens": 3, "output_tokens": 1}}, Tokens(3, 1)),
    ],
)
def test_tokens_are_those_that_the_protocol_states(protocol: Protocol, members: Any, tokens: Tokens) -> None:
    assert tokens_of(members, protocol) == tokens


def test_what_a_stream_says_later_counts() -> None:
    events = (
        b'data: {"message":{"usage":{"input_tokens":3,"output_tokens":1}}}\n\n',
        b"data: not json\n\n",
        b'data: {"usage":{"output_tokens":9}}\n\n',
    )
    tokens = Tokens()
    for raw in events:
        tokens = tokens.then(tokens_of_event(parse_event(raw), Protocol.MESSAGES))
    assert tokens == Tokens(3, 9)
    assert tokens.stated
    assert not Tokens(3).stated
