"""What a conversation begins with: the same for all of its turns, and another one's is another."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from libs.aci.endpoints import CHAT, MESSAGES, RESPONSES
from services.router.beginning import beginning_of
from services.router.errors import InvalidRequest
from services.router.prompt import parse


def body(**members: Any) -> bytes:
    return json.dumps({"model": "m"} | members).encode()


def message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


SYSTEM, ASKED = message("system", "Be brief."), message("user", "What is a mesh?")
CONVERSATION = [SYSTEM, ASKED, message("assistant", "A net."), message("user", "And a tee?"), message("tool", "T")]


def test_all_turns_of_a_conversation_begin_alike() -> None:
    turns = {parse(body(messages=CONVERSATION[:number]), CHAT).beginning for number in (2, 3, 4, 5)}
    assert len(turns) == 1
    assert turns != {b""}
    reordered = [dict(reversed(each.items())) for each in CONVERSATION]
    assert {parse(body(messages=reordered, temperature=1), CHAT).beginning} == turns


@pytest.mark.parametrize(
    "other",
    [
        [SYSTEM, message("user", "What is a tee?")],
        [message("system", "Be long."), ASKED],
        [ASKED],
        [message("user", [{"type": "text", "text": "What is a mesh?"}])],
    ],
)
def test_another_conversation_begins_otherwise(other: list[dict[str, object]]) -> None:
    assert parse(body(messages=other), CHAT).beginning != parse(body(messages=CONVERSATION), CHAT).beginning


def test_what_else_comes_before_the_first_answer_counts() -> None:
    asked = [ASKED, message("assistant", "A net.")]
    for endpoint, member, conversation in ((MESSAGES, "system", "messages"), (RESPONSES, "instructions", "input")):
        same = {
            parse(body(**{conversation: asked[:number], member: "Be brief."}), endpoint).beginning for number in (1, 2)
        }
        assert len(same) == 1
        assert parse(body(**{conversation: asked, member: "Be long."}), endpoint).beginning not in same


def test_a_prompt_that_grows_at_its_end_begins_alike() -> None:
    grown = {parse(body(prompt="a" * 1024 + rest), CHAT).beginning for rest in ("", "b", "cc")}
    assert len(grown) == 1
    assert parse(body(prompt="b" * 1024), CHAT).beginning not in grown


@pytest.mark.parametrize(
    "members", [{}, {"messages": "no list"}, {"messages": 1}, {"prompt": ["a", "b"]}, {"prompt": ""}, {"prompt": 12}]
)
def test_of_anything_else_no_beginning_is_known(members: dict[str, object]) -> None:
    assert parse(body(**members), CHAT).beginning == b""


def test_a_beginning_has_a_bound_and_is_not_shown() -> None:
    prompt = parse(body(messages=[message("user", "secret words " * 10_000)]), CHAT)
    assert len(prompt.beginning) == 16 << 10
    assert b"secret" in prompt.beginning
    assert "beginning" not in repr(prompt)


@pytest.mark.parametrize("depth", [*range(100, 1100, 50)])
def test_a_prompt_of_any_depth_is_read_or_refused(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    with suppress(InvalidRequest):
        parse(b'{"model":"m","messages":[{"role":"user","content":' + nested + b"}]}", CHAT)


def test_what_is_nested_too_deeply_to_be_written_has_no_beginning() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert beginning_of({"messages": [message("user", nested)]}) == b""
    while nested:  # Or its end would be as deep.
        nested = nested.pop()
