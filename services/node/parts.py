"""It is responsible for what messages, items and prompts are made of: which parts they have, and which members.

It is an allow list, as that of the body's members is: engines read members of parts that nobody here has heard of. By
`uuid` vLLM keeps what a part shows, and finds it for every tenant, whatever salt the request has: who names another's
is shown what that one showed, or has that one answered about what was never sent. So no such member reaches an engine,
and no part that has nothing in it to show. The rest is the engine's to judge.

The names are those of OpenAI's and Anthropic's API references, less what names something that was stored (`file_id`,
`item_reference`) and what a provider's own tools make, which nobody here has; with what vLLM documents beside them
(`audio_url`, `video_url`) and what answers have that clients send back (`reasoning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.aci.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from services.node.kinds import (
    Anything,
    Data,
    Each,
    Fault,
    Kind,
    Maybe,
    Members,
    Simple,
    Url,
    members,
    typed,
    with_more,
)

_BREAKPOINT = Maybe(members("mode", "ttl"))
"""How much of a prompt is to be kept for another time. Whose it finds is not in it."""
_INPUT_AUDIO = members("format", data=Data())


def _marked(kind: Members) -> Members:
    return with_more(kind, prompt_cache_breakpoint=_BREAKPOINT)


CHAT_PARTS = typed(
    {
        "text": _marked(members("text")),
        "refusal": members("refusal"),
        "image_url": _marked(members(image_url=members("detail", url=Url()))),
        "input_audio": _marked(members(input_audio=_INPUT_AUDIO)),
        "file": _marked(members(file=members("filename", file_data=Data()))),
        "audio_url": members(audio_url=members(url=Url())),
        "video_url": members(video_url=members(url=Url())),
    }
)
_FUNCTION = Maybe(members("name", arguments=Anything()))
CHAT_MESSAGE = members(
    "name",
    "reasoning",
    "reasoning_content",
    "refusal",
    "role",
    "tool_call_id",
    annotations=Anything(),
    audio=Maybe(members("data", "expires_at", "id", "transcript")),
    content=Each(CHAT_PARTS),
    function_call=_FUNCTION,
    tool_calls=Each(members("id", "index", "type", custom=Maybe(members("input", "name")), function=_FUNCTION)),
)


def _cached(kind: Members) -> Members:
    """See `_BREAKPOINT`."""
    return with_more(kind, cache_control=Maybe(members("ttl", "type")))


def _cited(kind: Members) -> Members:
    return with_more(_cached(kind), citations=Anything())


_TEXT = _cited(members("text"))
_SOURCES = {"base64": members("media_type", data=Data()), "url": members(url=Url())}
_IMAGE = _cached(members(source=typed(_SOURCES)))
_PAGES = Each(typed({"text": _TEXT, "image": _IMAGE}))
_DOCUMENT_SOURCES = {**_SOURCES, "text": members("data", "media_type"), "content": members(content=_PAGES)}
_SHOWN = {
    "text": _TEXT,
    "image": _IMAGE,
    "document": _cited(members("context", "title", source=typed(_DOCUMENT_SOURCES))),
    "search_result": _cited(members("source", "title", content=Each(typed({"text": _TEXT})))),
}
_RESULTS = Each(typed({**_SHOWN, "tool_reference": _cached(members("tool_name"))}))
BLOCKS = typed(
    {
        **_SHOWN,
        "thinking": members("signature", "thinking"),
        "redacted_thinking": members("data"),
        "tool_use": _cached(members("id", "name", "toolset_name", caller=Anything(), input=Anything())),
        "tool_result": _cached(members("is_error", "tool_use_id", "toolset_name", content=_RESULTS)),
    }
)
_ANTHROPIC: Mapping[str, Kind] = {
    "messages": Each(members("role", content=Each(BLOCKS))),
    "system": Each(typed({"text": _TEXT})),
}

_INPUTS = {
    "input_text": _marked(members("text")),
    "input_image": _marked(members("detail", image_url=Url())),
    "input_file": _marked(members("detail", "file_data", "filename", file_url=Maybe(Url()))),
}
ITEM_PARTS = typed(
    {
        **_INPUTS,
        "input_audio": members(input_audio=_INPUT_AUDIO),
        "output_text": members("text", annotations=Anything(), logprobs=Anything()),
        "refusal": members("refusal"),
    }
)
_CALL = members("call_id", "id", "name", "namespace", "status", caller=Anything())
_CALLS_OUTPUT = with_more(_CALL, output=Each(typed(_INPUTS)))
ITEMS = typed(
    {
        "message": members("id", "phase", "role", "status", content=Each(ITEM_PARTS)),
        "reasoning": members(
            "encrypted_content",
            "id",
            "status",
            content=Each(typed({"reasoning_text": members("text")})),
            summary=Each(typed({"summary_text": members("text")})),
        ),
        "function_call": with_more(_CALL, **{"arguments": Simple(), "async": Simple()}),
        "function_call_output": _CALLS_OUTPUT,
        "custom_tool_call": with_more(_CALL, **{"async": Simple(), "input": Simple()}),
        "custom_tool_call_output": _CALLS_OUTPUT,
    },
    unsaid="message",
)

_PROMPTS = Each(Each(Simple()))
"""One or several, of text or of tokens' numbers."""

PARTS: Mapping[Endpoint, Mapping[str, Kind]] = {
    CHAT: {"messages": Each(CHAT_MESSAGE), "prediction": Maybe(members("type", content=Each(CHAT_PARTS)))},
    COMPLETIONS: {"prompt": _PROMPTS},
    EMBEDDINGS: {"input": _PROMPTS},
    MESSAGES: _ANTHROPIC,
    COUNT_TOKENS: _ANTHROPIC,
    RESPONSES: {"input": Each(ITEMS)},
}


def fault_of_parts(endpoint: Endpoint, body: Mapping[str, Any], fetches: bool) -> Fault | None:
    """Return what is wrong first in what the members of a body are made of, None where nothing is.

    `fetches` is true where the engine judges by itself what it fetches.
    """
    for name, kind in PARTS[endpoint].items():
        if (fault := kind.fault(body.get(name), name, fetches)) is not None:
            return fault
    return None
