"""What bodies hold at every endpoint: what clients send is taken, what engines fail on is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from libs.aci.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, DEFINED, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from services.node.api.bodies import BEYOND_TEXT, BODIES
from services.node.api.kinds import ShapeRefused
from services.node.asked import read_body
from services.node.members import KNOWN
from services.node.questions import question
from services.node.refused import BodyRefused

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


def read(endpoint: Endpoint, lacks: frozenset[str] = frozenset(), **members: Any) -> None:
    body = question(endpoint, "m") | members
    read_body(json.dumps(body).encode(), frozenset({"m"}), endpoint, lacks)


def refusal(endpoint: Endpoint, **members: Any) -> str:
    """What a model of text alone refuses it with; nothing where it takes it."""
    try:
        read(endpoint, BEYOND_TEXT, **members)
    except BodyRefused as refused:
        return str(refused)
    return ""


def message(**members: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, members]}


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("endpoint", "members"),
    [
        (CHAT, {"tools": None, "stop": None, "response_format": None, "tool_choice": None, "stream_options": None}),
        (CHAT, {"tools": [FUNCTION], "tool_choice": "required", "stop": ["a", "b"]}),
        (CHAT, {"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "weather"}}}),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}),
        (CHAT, user([{"type": "text", "text": "Hi"}, IMAGE])),
        # As the SDK gives an answer back.
        (CHAT, message(role="assistant", content="Hi", refusal=None, audio=None, function_call=None, tool_calls=None)),
        (CHAT, message(role="assistant", content=None, tool_calls=[CALL])),
        (CHAT, message(role="assistant", tool_calls=[CALL])),
        (CHAT, message(role="tool", tool_call_id="c1", content="21 degrees")),
        (CHAT, {"store": False, "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s", "service_tier": "auto"}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"prompt": [1, 2, 3]}),
        (EMBEDDINGS, {"input": [[1, 2], [3]]}),
        (EMBEDDINGS, {"input": ["a", [3]], "encoding_format": "base64"}),
        (EMBEDDINGS, {"input": "a", "encoding_format": "float"}),
        (MESSAGES, {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]}),
        (MESSAGES, {"tools": [{"name": "weather", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}}),
        (MESSAGES, user([{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "21"}]}])),
        (
            MESSAGES,
            message(
                role="assistant",
                content=[
                    {"type": "thinking", "thinking": "Hm.", "signature": "AA"},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}},
                ],
            ),
        ),
        (COUNT_TOKENS, user([{"type": "text", "text": "Hi"}])),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}),
        (
            RESPONSES,
            {
                "input": [
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
                    {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c1", "output": "21 degrees"},
                    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
                ],
                "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}, {"type": "web_search"}],
            },
        ),
    ],
)
def test_what_clients_send_is_taken(endpoint: Endpoint, members: dict[str, Any]) -> None:
    read(endpoint, **members)


NO_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": "Hi"}, "messages must be a list"),
    ({"messages": []}, "messages must have at least 1"),
    ({"messages": None}, "messages must be a list"),
    ({"messages": ["Hi"]}, "messages[0] must be an object"),
    (message(content="Hi"), "messages[1].role must be a string"),
    (message(role=7, content="Hi"), "messages[1].role must be a string"),
    (message(role=["user"], content="Hi"), "messages[1].role must be a string"),
    (message(role="user"), "messages[1].content is missing"),
    (message(role="user", content={"text": "Hi"}), "messages[1].content must be a string or a list"),
    (message(role="user", content=["Hi"]), "messages[1].content[0] must be an object"),
    (message(role="user", content=[{"text": "Hi"}]), "messages[1].content[0].type must be a string"),
    (message(role="user", content=[{"type": "text"}]), "messages[1].content[0].text is missing"),
    (message(role="user", content=[{"type": "text", "text": 7}]), "messages[1].content[0].text must be a string"),
    ({"tools": "x"}, "tools must be a list or null"),
    ({"tools": ["x"]}, "tools[0] must be an object"),
]
"""What neither API has."""
NO_TOOLS: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{}]}, "tools[0].type must be a string"),
    ({"tools": [{"type": "function"}]}, "tools[0].function is missing"),
    ({"tools": [{"type": "function", "function": "weather"}]}, "tools[0].function must be an object"),
    (tool(), "tools[0].function.name is missing"),
    (tool(name=7), "tools[0].function.name must be a string"),
    (tool(name="a", description=7), "tools[0].function.description must be a string"),
    (tool(name="a", parameters="x"), "tools[0].function.parameters must be an object or null"),
    ({"tool_choice": "all"}, "tool_choice must be one of auto, none, required"),
    ({"tool_choice": ["auto"]}, "tool_choice must be a string or an object or null"),
    ({"response_format": "json"}, "response_format must be an object or null"),
    ({"response_format": {"type": 7}}, "response_format.type must be a string"),
    ({"response_format": {"type": "json_schema", "json_schema": 7}}, "response_format.json_schema must be an object"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
        "response_format.json_schema.schema must be an object",
    ),
    ({"stop": 7}, "stop must be a string or a list or null"),
    ({"stop": [7]}, "stop[0] must be a string"),
    ({"stream_options": []}, "stream_options must be an object or null"),
    (message(role="wizard", content="Hi"), "messages[1].role must be one of assistant, developer"),
    (message(role="user", content="Hi", name=7), "messages[1].name must be a string"),
    (message(role="assistant", tool_calls="x"), "messages[1].tool_calls must be a list or null"),
    (message(role="assistant", tool_calls=[{}]), "messages[1].tool_calls[0].type must be a string"),
    (message(role="assistant", tool_calls=[{"type": "function"}]), "messages[1].tool_calls[0].function is missing"),
    (
        message(role="assistant", tool_calls=[{"type": "function", "function": {"name": "a"}}]),
        "messages[1].tool_calls[0].function.arguments is missing",
    ),
    (message(role="tool", content="21", tool_call_id=7), "messages[1].tool_call_id must be a string"),
]
NO_PROMPT: list[tuple[dict[str, Any], str]] = [
    ({"prompt": {"prompt_string": "Hi"}}, "prompt must be a string or a list"),
    ({"prompt": []}, "prompt must have at least 1"),
    ({"prompt": [[]]}, "prompt[0] must have at least 1"),
    ({"prompt": [1, [2]]}, "prompt must have numbers alone, or none"),
    ({"prompt": [1.5]}, "prompt[0] must be a token's number"),
    ({"prompt": [{"prompt_string": "Hi"}]}, "prompt[0] must be a string or a number or a list"),
]
NO_INPUT: list[tuple[dict[str, Any], str]] = [
    *(({"encoding_format": each}, "encoding_format must be one of base64, float") for each in ("bytes", "bytes_only")),
    ({"encoding_format": ["float"]}, "encoding_format must be a string or null"),
]
NO_MESSAGES: list[tuple[dict[str, Any], str]] = [
    (message(role="user", content=None), "messages[1].content must be a string or a list"),
    (message(role="user", content=[{"type": "tool_result"}]), "messages[1].content[0].tool_use_id is missing"),
    (message(role="user", content=[{"type": "sound"}]), "messages[1].content[0].type must be one of document"),
    (
        message(role="assistant", content=[{"type": "tool_use", "id": "t", "name": "a", "input": "x"}]),
        "messages[1].content[0].input must be an object",
    ),
    (
        message(role="user", content=[{"type": "tool_result", "tool_use_id": "t", "content": 7}]),
        "messages[1].content[0].content must be a string",
    ),
    ({"system": 7}, "system must be a string or a list or null"),
    ({"system": [{"type": "text", "text": 7}]}, "system[0].text must be a string"),
    ({"tools": [{"input_schema": {}}]}, "tools[0].name is missing"),
    ({"tools": [{"name": "a", "input_schema": 7}]}, "tools[0].input_schema must be an object"),
    ({"tool_choice": "any"}, "tool_choice must be an object or null"),
]
NO_RESPONSES: list[tuple[dict[str, Any], str]] = [
    ({"input": 7}, "input must be a string or a list"),
    ({"input": []}, "input must have at least 1"),
    ({"input": ["Hi"]}, "input[0] must be an object"),
    ({"input": [{"role": 7, "content": "Hi"}]}, "input[0].role must be a string"),
    ({"input": [{"type": "function_call", "call_id": 7}]}, "input[0].call_id must be a string"),
    ({"input": [{"type": "mcp_call"}]}, "input[0].type must be one of custom_tool_call, "),
    ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 7}]}]}, "input[0].content[0].text must be"),
    ({"tools": [{"type": "function"}]}, "tools[0].name is missing"),
    ({"tools": [{"type": "function", "name": "a", "parameters": 7}]}, "tools[0].parameters must be an object"),
    ({"tools": [{"type": "web_search", "name": 7}]}, "tools[0].name must be a string"),
    ({"instructions": ["Be brief."]}, "instructions must be a string or null"),
    ({"reasoning": "high"}, "reasoning must be an object or null"),
]
REFUSED: list[tuple[Endpoint, dict[str, Any], str]] = [
    *((endpoint, *row) for endpoint in (CHAT, MESSAGES, COUNT_TOKENS) for row in NO_CHAT),
    *((CHAT, *row) for row in NO_TOOLS),
    *((COMPLETIONS, *row) for row in NO_PROMPT),
    *((EMBEDDINGS, {"input": members["prompt"]}, said.replace("prompt", "input")) for members, said in NO_PROMPT),
    *((EMBEDDINGS, *row) for row in NO_INPUT),
    *((endpoint, *row) for endpoint in (MESSAGES, COUNT_TOKENS) for row in NO_MESSAGES),
    *((RESPONSES, *row) for row in NO_RESPONSES),
]


@pytest.mark.parametrize(("endpoint", "members", "said"), REFUSED)
def test_what_engines_fail_on_is_refused_by_its_name(endpoint: Endpoint, members: dict[str, Any], said: str) -> None:
    with pytest.raises(ShapeRefused) as refused:
        read(endpoint, **members)
    assert str(refused.value).startswith(said)
    assert (refused.value.reason, refused.value.status, refused.value.type) == (
        "SHAPE_REFUSED",
        400,
        "invalid_request_error",
    )


SHOWN = {"type": "base64", "media_type": "image/png", "data": "AAAA"}


@pytest.mark.parametrize("endpoint", DEFINED, ids=lambda endpoint: endpoint.path)
def test_a_body_without_what_is_asked_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(ShapeRefused, match=r"(messages|prompt|input) is missing"):
        read_body(b'{"model":"m"}', frozenset({"m"}), endpoint)


@pytest.mark.parametrize(
    ("endpoint", "members", "said"),
    [
        (CHAT, user([IMAGE]), "messages[0].content[0].type must be one of refusal, text"),
        (CHAT, user([{"type": "input_audio", "input_audio": {"data": "AAAA"}}]), "messages[0].content[0].type must be"),
        (MESSAGES, user([{"type": "image", "source": SHOWN}]), "messages[0].content[0].type must be"),
        (
            MESSAGES,
            user([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": SHOWN}]}]),
            "messages[0].content[0].content[0].type must be",
        ),
        (
            RESPONSES,
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}
                ]
            },
            "input[0].content[0].type must",
        ),
    ],
)
def test_what_is_more_than_text_is_refused_where_the_model_takes_nothing_else(
    endpoint: Endpoint, members: dict[str, Any], said: str
) -> None:
    read(endpoint, **members)
    with pytest.raises(ShapeRefused) as refused:
        read(endpoint, BEYOND_TEXT, **members)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("endpoint", DEFINED, ids=lambda endpoint: endpoint.path)
def test_every_row_is_of_a_member_that_is_taken(endpoint: Endpoint) -> None:
    taken = frozenset().union(*KNOWN.values())
    assert BODIES[endpoint].known.keys() <= taken


ODD: list[Any] = [
    None,
    True,
    7,
    -0.5,
    "",
    "x" * 5000,
    [],
    [None],
    [[]],
    [{}],
    {},
    {"": {}},
    [{"type": "text"}],
    [{"type": ["text"]}],
    [{"role": "user", "content": [{"type": "text", "text": {}}]}],
    [{"role": "assistant", "tool_calls": [{"type": "function", "function": []}]}],
]


@pytest.mark.parametrize("endpoint", DEFINED, ids=lambda endpoint: endpoint.path)
def test_whatever_a_member_holds_is_read_or_refused_in_few_words(endpoint: Endpoint) -> None:
    for name in KNOWN[endpoint] - {"model"}:
        for odd in ODD:
            assert len(refusal(endpoint, **{name: odd})) < 300
