"""How an engine that heeds no names is asked for the call of a tool."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs.aci import rewriting
from libs.aci.endpoints import CHAT, COUNT_TOKENS, MESSAGES, RESPONSES, Endpoint
from libs.aci.rewriting import JsonNotRewritable
from services.node.asked import read_body
from services.node.calling import Calling, ToolChoiceRefused
from services.node.refused import BodyRefused

HELPED = Calling()
BEGINNING = Calling("<tool_call>")
SCHEMA = {"type": "object", "properties": {"number": {"type": "number", "maximum": 1.50}}}


def chat_tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA}}


def responses_tool(name: str) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": SCHEMA}


def anthropic_tool(name: str) -> dict[str, Any]:
    return {"name": name, "input_schema": SCHEMA}


TOOLS = {CHAT: chat_tool, RESPONSES: responses_tool, MESSAGES: anthropic_tool, COUNT_TOKENS: anthropic_tool}


def told(body: bytes, endpoint: Endpoint, calling: Calling) -> bytes:
    """What an engine gets that needs this help."""
    return calling.ask(body, rewriting.loads(body), endpoint.protocol)


def shown(endpoint: Endpoint, calling: Calling = HELPED, **members: Any) -> Any:
    """What of a body of these members reaches the engine."""
    tools = [TOOLS[endpoint](name) for name in ("clock", "weather", "news")]
    body = json.dumps({"model": "m", "tools": tools} | members).encode()
    return json.loads(told(body, endpoint, calling))


@pytest.mark.parametrize(
    ("endpoint", "choice", "required"),
    [
        (CHAT, {"type": "function", "function": {"name": "weather"}}, "required"),
        (RESPONSES, {"type": "function", "name": "weather"}, "required"),
        (MESSAGES, {"type": "tool", "name": "weather"}, {"type": "any"}),
        (COUNT_TOKENS, {"type": "tool", "name": "weather"}, {"type": "any"}),
        (
            MESSAGES,
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
    ids=["chat", "responses", "messages", "count_tokens", "not in parallel"],
)
def test_the_named_tool_is_shown_alone_and_a_call_required(endpoint: Endpoint, choice: Any, required: Any) -> None:
    asked = shown(endpoint, tool_choice=choice)
    once = {} if required != "required" else {"parallel_tool_calls": False}
    assert asked == {"model": "m", "tools": [TOOLS[endpoint]("weather")], "tool_choice": required, **once}


def test_all_else_stays_as_it_was_written() -> None:
    body = b'{ "model":"m","temperature":0.70,"tools":[{"function":{"name":"a","n":1.50}},{"function":{"name":"b"}}],'
    body += b'"tool_choice":{"type":"function","function":{"name":"a"}},"messages":[{"content":"\\u00e9 \\ud800"}]}'
    assert told(body, CHAT, HELPED) == (
        b'{"model":"m","temperature":0.70,"tools":[{"function":{"name":"a","n":1.50}}],"tool_choice":"required",'
        b'"messages":[{"content":"\xc3\xa9 \\ud800"}],"parallel_tool_calls":false}'
    )


@pytest.mark.parametrize("choice", [None, "auto", "none", "required", "any", 7, [], True])
def test_a_choice_that_names_none_reaches_the_engine_byte_for_byte(choice: Any) -> None:
    body = json.dumps({"model": "m", "tools": [chat_tool("weather")], "tool_choice": choice}).encode()
    assert told(body, CHAT, HELPED) == body


@pytest.mark.parametrize("kind", ["auto", "any", "none"])
def test_anthropics_choice_that_names_none_reaches_the_engine_byte_for_byte(kind: str) -> None:
    choice = {"type": kind, "disable_parallel_tool_use": True}
    body = json.dumps({"model": "m", "tools": [anthropic_tool("weather")], "tool_choice": choice}).encode()
    assert told(body, MESSAGES, HELPED) == body


USER = {"role": "user", "content": "How warm is it?"}
BEGUN = {"role": "assistant", "content": "<tool_call>"}
NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("endpoint", "choice", "turns", "begun"),
    [
        (CHAT, "required", {"messages": [USER]}, {"messages": [USER, BEGUN]}),
        (CHAT, NAMED, {"messages": [USER]}, {"messages": [USER, BEGUN]}),
        (MESSAGES, {"type": "any"}, {"messages": [USER]}, {"messages": [USER, BEGUN]}),
        (MESSAGES, {"type": "tool", "name": "weather"}, {"messages": [USER]}, {"messages": [USER, BEGUN]}),
        (COUNT_TOKENS, {"type": "any"}, {"messages": [USER]}, {"messages": [USER, BEGUN]}),
        (RESPONSES, "required", {"input": "Hi"}, {"input": [{**USER, "content": "Hi"}, {"type": "message", **BEGUN}]}),
        (RESPONSES, "required", {"input": [USER]}, {"input": [USER, {"type": "message", **BEGUN}]}),
    ],
    ids=["chat", "chat, named", "messages", "messages, named", "count_tokens", "a text", "responses"],
)
def test_where_a_call_is_demanded_the_answer_is_begun_with_one(
    endpoint: Endpoint, choice: Any, turns: dict[str, Any], begun: dict[str, Any]
) -> None:
    asked = shown(endpoint, BEGINNING, tool_choice=choice, **turns)
    assert {name: asked[name] for name in begun} == begun


@pytest.mark.parametrize(
    ("endpoint", "members"),
    [
        (CHAT, {"messages": [USER]}),
        (CHAT, {"messages": [USER], "tool_choice": "auto"}),
        (CHAT, {"messages": [USER], "tool_choice": "none"}),
        (CHAT, {"messages": [USER, {"role": "assistant", "content": "So"}], "tool_choice": "required"}),
        (CHAT, {"messages": [], "tool_choice": "required"}),
        (CHAT, {"messages": "Hi", "tool_choice": "required"}),
        (RESPONSES, {"input": 7, "tool_choice": "required"}),
        (MESSAGES, {"messages": [USER], "tool_choice": "required"}),
        (MESSAGES, {"messages": [USER], "tool_choice": {"type": "auto"}}),
    ],
    ids=repr,
)
def test_no_other_answer_is_begun(endpoint: Endpoint, members: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "tools": [], **members}).encode()
    assert told(body, endpoint, BEGINNING) == body


def test_an_engine_that_needs_no_help_gets_every_body_as_it_came() -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    body = json.dumps(
        {"model": "m", "messages": [USER], "tools": [chat_tool("weather")], "tool_choice": choice}
    ).encode()
    assert read_body(body, frozenset({"m"}), CHAT).told is body
    assert json.loads(read_body(body, frozenset({"m"}), CHAT, calling=HELPED).told)["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("endpoint", "choice"),
    [
        (CHAT, {"type": "function", "function": {"name": "other"}}),
        (CHAT, {"type": "function", "function": {"name": 7}}),
        (CHAT, {"type": "function", "function": {}}),
        (CHAT, {"type": "function", "function": "weather"}),
        (CHAT, {"type": "function", "name": "weather"}),
        (CHAT, {"type": "custom", "custom": {"name": "weather"}}),
        (CHAT, {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}),
        (CHAT, {"function": {"name": "weather"}}),
        (CHAT, {"type": "auto"}),
        (CHAT, {}),
        (RESPONSES, {"type": "file_search"}),
        (RESPONSES, {"type": "function", "function": {"name": "weather"}}),
        (MESSAGES, {"type": "tool", "name": "other"}),
        (MESSAGES, {"type": "tool"}),
        (MESSAGES, {"type": "function", "name": "weather"}),
        (MESSAGES, {"type": ["any"]}),
        (COUNT_TOKENS, {"type": "tool", "name": "other"}),
    ],
    ids=lambda value: value.path if isinstance(value, Endpoint) else json.dumps(value),
)
def test_a_choice_that_would_not_be_heeded_is_refused(endpoint: Endpoint, choice: Any) -> None:
    with pytest.raises(ToolChoiceRefused):
        shown(endpoint, tool_choice=choice)


@pytest.mark.parametrize("tools", [None, [], {}, "weather", [None], ["weather"], [{"function": None}]], ids=repr)
def test_without_the_named_tool_there_is_nothing_to_call(tools: Any) -> None:
    with pytest.raises(ToolChoiceRefused) as refused:
        shown(CHAT, tools=tools, tool_choice={"type": "function", "function": {"name": "weather"}})
    assert (refused.value.status, refused.value.type) == (400, "invalid_request_error")


def test_however_deeply_a_body_is_nested_it_is_written_anew_or_refused() -> None:
    body = b'{"model":"m","tools":[{"function":{"name":"a"}}],"tool_choice":{"type":"function","function":{"name":"a"}}'
    refused = 0
    for depth in range(800, 1000, 10):
        nested = body + b',"messages":' + b"[" * depth + b"]" * depth + b"}"
        try:
            assert b'"required"' in told(nested, CHAT, HELPED)
        except (BodyRefused, JsonNotRewritable):
            refused += 1
    assert refused > 0
