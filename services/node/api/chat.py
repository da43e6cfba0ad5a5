"""It is responsible for what a chat's body holds, as OpenAI's API reference has it.

Beside that are two parts that vLLM documents, `audio_url` and `video_url`, and what answers have that clients send
back (`reasoning`). What names something that was stored (`file_id`) is not there: nobody here has it.
"""

from __future__ import annotations

from services.node.api.kinds import (
    ANYTHING,
    NULL,
    OBJECT,
    SIMPLE,
    STRING,
    TEXT,
    Data,
    Each,
    Json,
    Members,
    Url,
    Value,
    Word,
    a,
    by,
    members,
    simple,
)

MARK = {"prompt_cache_breakpoint": a(members(**simple("mode", "ttl")), NULL)}
"""How much of a prompt is to be kept for another time. Whose it finds is not in it."""
AUDIO = a(members("data", data=a(Data()), **simple("format")))
CHOICE = a(Word(frozenset({"auto", "none", "required"})), OBJECT, NULL)
"""Of a tool."""


def _at(url: str, **more: Value) -> Members:
    return members(url, **{url: a(members("url", url=a(Url()), **more))})


PARTS = by(
    "type",
    {
        "text": members("text", text=STRING, **MARK),
        "refusal": members("refusal", refusal=STRING),
        "image_url": _at("image_url", **simple("detail")).also(**MARK),
        "input_audio": members("input_audio", input_audio=AUDIO, **MARK),
        "file": members("file", file=a(members("file_data", file_data=a(Data()), **simple("filename"))), **MARK),
        "audio_url": _at("audio_url"),
        "video_url": _at("video_url"),
    },
)
_CALLED = members("name", "arguments", name=STRING, arguments=a(Json(), OBJECT))
_CALLS = Each(a(by("type", {"function": members("function", function=a(_CALLED), id=STRING, **simple("index"))})))
MESSAGE = members(
    name=STRING,
    tool_call_id=STRING,
    content=a(TEXT, Each(a(PARTS)), NULL),
    reasoning_content=a(TEXT, NULL),
    tool_calls=a(_CALLS, NULL),
    function_call=a(members(name=SIMPLE, arguments=a(Json(), OBJECT, NULL)), NULL),
    annotations=ANYTHING,
    audio=a(members(**simple("data", "expires_at", "id", "transcript")), NULL),
    **simple("reasoning", "refusal"),
)
_SAID = MESSAGE.also("content")
_MESSAGES = by(
    "role", {"assistant": MESSAGE} | dict.fromkeys(("developer", "function", "system", "tool", "user"), _SAID)
)
_FUNCTION = Members(
    {"name": STRING, "description": STRING, "parameters": a(OBJECT, NULL)}, needs=("name",), others=True
)
_TOOL = by("type", {"function": Members({"function": a(_FUNCTION)}, needs=("function",), others=True)})
_FORMAT = Members(
    {"type": STRING, "schema": a(OBJECT), "json_schema": a(Members({"schema": a(OBJECT)}, others=True))}, others=True
)

BODY = {
    "messages": a(Each(a(_MESSAGES), fewest=1)),
    "tools": a(Each(a(_TOOL)), NULL),
    "tool_choice": CHOICE,
    "functions": a(Each(a(_FUNCTION)), NULL),
    "function_call": a(TEXT, OBJECT, NULL),
    "response_format": a(_FORMAT, NULL),
    "modalities": a(Each(STRING), NULL),
    "prediction": a(members(content=a(TEXT, Each(a(PARTS)), NULL), **simple("type")), NULL),
}
