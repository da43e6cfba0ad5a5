"""It is responsible for the shapes of what a request body's members hold, at every endpoint.

Engines answer some of what is no request of their APIs as if they themselves had failed. That is in these tables, and
judged before the engine is asked. What is not there, and simple values above all, engines refuse by themselves.

They are OpenAI's and Anthropic's API references. `null` is taken where these, or clients that send answers back, have
it.
"""

from __future__ import annotations

from collections.abc import Mapping

from libs.aci.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from services.node.shapes import FLAG, LIST, NULL, NUMBER, OBJECT, TEXT, Place, Shape, a, planted

MEDIA = frozenset(
    {"audio_url", "document", "file", "image", "image_url", "input_audio", "input_file", "input_image", "video_url"}
)
"""Types of parts that are more than text."""

_CONTENT = ("content",)
_CHOICES = {"none": (), "auto": (), "required": ()}


def _below(path: str, rows: Mapping[str, Shape]) -> dict[str, Shape]:
    return {path + each: shape for each, shape in rows.items()}


_EVERYWHERE = {
    "": a(OBJECT),
    "metadata": a(OBJECT, NULL),
    "provider": a(OBJECT, NULL),
    "stop": a(TEXT, LIST, NULL),
    "stop[]": a(TEXT),
    "stream": a(FLAG, NULL),
    "stream_options": a(OBJECT, NULL),
}
_TOKENS = {
    "": a(TEXT, LIST, fewest=1, apart=True),
    "[]": a(TEXT, NUMBER, LIST, token=True, fewest=1),
    "[][]": a(NUMBER, token=True),
}
"""Texts, or tokens by their numbers."""
_FUNCTION = {
    "": a(OBJECT, needs=("name",)),
    ".name": a(TEXT),
    ".description": a(TEXT),
    ".parameters": a(OBJECT, NULL),
}
_SAID = {
    ".name": a(TEXT),
    ".tool_call_id": a(TEXT),
    ".reasoning_content": a(TEXT, NULL),
    ".tool_calls": a(LIST, NULL),
    ".tool_calls[]": a(OBJECT, by="type", known={"function": ("function",)}),
    ".tool_calls[].id": a(TEXT),
    ".tool_calls[].function": a(OBJECT, needs=("name", "arguments")),
    ".tool_calls[].function.name": a(TEXT),
    ".tool_calls[].function.arguments": a(TEXT, OBJECT),
}
"""Of a message, whoever's API it is: engines turn one API's requests into another's."""

_CHAT = {
    "": a(OBJECT, needs=("messages",)),
    "messages": a(LIST, fewest=1),
    "messages[]": a(
        OBJECT,
        by="role",
        known=dict.fromkeys(("developer", "function", "system", "tool", "user"), _CONTENT) | {"assistant": ()},
    ),
    **_below("messages[]", _SAID),
    "messages[].content": a(TEXT, LIST, NULL),
    "messages[].content[]": a(
        OBJECT,
        by="type",
        known={
            name: (name,) for name in ("audio_url", "file", "image_url", "input_audio", "refusal", "text", "video_url")
        },
    ),
    "messages[].content[].text": a(TEXT),
    "messages[].content[].refusal": a(TEXT),
    "messages[].content[].image_url": a(OBJECT, needs=("url",)),
    "messages[].content[].image_url.url": a(TEXT),
    "tools": a(LIST, NULL),
    "tools[]": a(OBJECT, by="type", known={"function": ("function",)}),
    **_below("tools[].function", _FUNCTION),
    "tool_choice": a(TEXT, OBJECT, NULL, known=_CHOICES),
    "functions": a(LIST, NULL),
    **_below("functions[]", _FUNCTION),
    "function_call": a(TEXT, OBJECT, NULL),
    "response_format": a(OBJECT, NULL),
    "response_format.type": a(TEXT),
    "response_format.schema": a(OBJECT),
    "response_format.json_schema": a(OBJECT),
    "response_format.json_schema.schema": a(OBJECT),
    "modalities": a(LIST, NULL),
    "modalities[]": a(TEXT),
    "prediction": a(OBJECT, NULL),
}
_ANTHROPIC = {
    "": a(OBJECT, needs=("messages",)),
    "messages": a(LIST, fewest=1),
    "messages[]": a(OBJECT, by="role", known=dict.fromkeys(("assistant", "system", "user"), _CONTENT)),
    **_below("messages[]", _SAID),
    "messages[].content": a(TEXT, LIST),
    "messages[].content[]": a(
        OBJECT,
        by="type",
        known={
            "document": ("source",),
            "image": ("source",),
            "redacted_thinking": ("data",),
            "search_result": ("content", "source"),
            "text": ("text",),
            "thinking": ("thinking",),
            "tool_result": ("tool_use_id",),
            "tool_use": ("id", "name", "input"),
        },
    ),
    **{f"messages[].content[].{name}": a(TEXT) for name in ("id", "name", "text", "thinking", "tool_use_id")},
    "messages[].content[].input": a(OBJECT),
    "messages[].content[].content": a(TEXT, LIST, NULL),
    "messages[].content[].content[]": a(
        OBJECT,
        by="type",
        known={"document": ("source",), "image": ("source",), "search_result": ("source",), "text": ("text",)},
    ),
    "messages[].content[].content[].text": a(TEXT),
    "system": a(TEXT, LIST, NULL),
    "system[]": a(OBJECT, by="type", known={"text": ("text",)}),
    "system[].text": a(TEXT),
    "tools": a(LIST, NULL),
    "tools[]": a(OBJECT, needs=("name",)),
    "tools[].name": a(TEXT),
    "tools[].description": a(TEXT, NULL),
    "tools[].input_schema": a(OBJECT),
    "tool_choice": a(OBJECT, NULL, by="type", known={"any": (), "auto": (), "none": (), "tool": ("name",)}),
    "thinking": a(OBJECT, NULL),
    "output_config": a(OBJECT, NULL),
    "stop_sequences": a(LIST, NULL),
    "stop_sequences[]": a(TEXT),
}
_RESPONSES = {
    "": a(OBJECT, needs=("input",)),
    "input": a(TEXT, LIST, fewest=1),
    "input[]": a(OBJECT),
    "input[].role": a(TEXT, known=dict.fromkeys(("assistant", "developer", "system", "user"), ())),
    **{f"input[].{name}": a(TEXT) for name in ("arguments", "call_id", "type")},
    **_below("input[]", _SAID),
    "input[].content": a(TEXT, LIST, NULL),
    "input[].content[]": a(
        OBJECT,
        by="type",
        known={
            **dict.fromkeys(("input_text", "output_text", "reasoning_text", "summary_text"), ("text",)),
            "refusal": ("refusal",),
            "input_audio": ("input_audio",),
            "input_file": (),
            "input_image": (),
        },
    ),
    "input[].content[].text": a(TEXT),
    "input[].content[].refusal": a(TEXT),
    "input[].output": a(TEXT, LIST, OBJECT),
    "input[].output[]": a(OBJECT),
    "input[].output[].text": a(TEXT),
    "input[].summary": a(LIST),
    "input[].summary[]": a(OBJECT),
    "instructions": a(TEXT, NULL),
    "include": a(LIST, NULL),
    "include[]": a(TEXT),
    "tools": a(LIST, NULL),
    "tools[]": a(OBJECT, by="type", known={"function": ("name",)}, open=True),
    "tools[].name": a(TEXT),
    "tools[].description": a(TEXT, NULL),
    "tools[].parameters": a(OBJECT, NULL),
    "tool_choice": a(TEXT, OBJECT, NULL, known=_CHOICES),
    "reasoning": a(OBJECT, NULL),
    "text": a(OBJECT, NULL),
}

SHAPES: Mapping[Endpoint, Mapping[str, Shape]] = {
    CHAT: _EVERYWHERE | _CHAT,
    COMPLETIONS: _EVERYWHERE | {"": a(OBJECT, needs=("prompt",))} | _below("prompt", _TOKENS),
    EMBEDDINGS: _EVERYWHERE | {"": a(OBJECT, needs=("input",))} | _below("input", _TOKENS),
    MESSAGES: _EVERYWHERE | _ANTHROPIC,
    COUNT_TOKENS: _EVERYWHERE | _ANTHROPIC,
    RESPONSES: _EVERYWHERE | _RESPONSES,
}

PLACES: Mapping[Endpoint, Place] = {endpoint: planted(rows) for endpoint, rows in SHAPES.items()}
