"""It is responsible for what a body at messages holds, as Anthropic's API reference has it.

What a provider's own tools make, and files that it keeps, are not there: nobody here has them.
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
    Members,
    Url,
    a,
    by,
    members,
    simple,
)

_MARK = {"cache_control": a(members(**simple("ttl", "type")), NULL)}
"""How much of a prompt is to be kept for another time. Whose it finds is not in it."""
_CITED = {"citations": ANYTHING, **_MARK}

_TEXT = members("text", text=STRING, **_CITED)
_TEXTS = by("type", {"text": _TEXT})
_SOURCES = {"base64": members("data", data=a(Data()), **simple("media_type")), "url": members("url", url=a(Url()))}
_IMAGE = members("source", source=a(by("type", _SOURCES)), **_MARK)
_PAGES = Each(a(by("type", {"text": _TEXT, "image": _IMAGE})))
_DOCUMENTS = {
    **_SOURCES,
    "text": members(**simple("data", "media_type")),
    "content": members(content=a(TEXT, _PAGES)),
}
_SHOWN = {
    "text": _TEXT,
    "image": _IMAGE,
    "document": members("source", source=a(by("type", _DOCUMENTS)), **simple("context", "title"), **_CITED),
    "search_result": members(
        "content", "source", content=a(TEXT, Each(a(_TEXTS))), **simple("source", "title"), **_CITED
    ),
}
_RESULTS = Each(a(by("type", {**_SHOWN, "tool_reference": members(**simple("tool_name"), **_MARK)})))
BLOCKS = by(
    "type",
    {
        **_SHOWN,
        "thinking": members("thinking", thinking=STRING, **simple("signature")),
        "redacted_thinking": members("data", data=SIMPLE),
        "tool_use": members(
            *("id", "name", "input"),
            id=STRING,
            name=STRING,
            input=a(OBJECT),
            caller=ANYTHING,
            **simple("toolset_name"),
            **_MARK,
        ),
        "tool_result": members(
            "tool_use_id",
            tool_use_id=STRING,
            content=a(TEXT, _RESULTS, NULL),
            **simple("is_error", "toolset_name"),
            **_MARK,
        ),
    },
)
_MESSAGE = members("content", content=a(TEXT, Each(a(BLOCKS))))
_TOOL = Members({"name": STRING, "description": a(TEXT, NULL), "input_schema": a(OBJECT)}, needs=("name",), others=True)
_ANY_TOOL = Members({}, others=True)

BODY = {
    "messages": a(Each(a(by("role", dict.fromkeys(("assistant", "system", "user"), _MESSAGE))), fewest=1)),
    "system": a(TEXT, Each(a(_TEXTS)), NULL),
    "tools": a(Each(a(_TOOL)), NULL),
    "tool_choice": a(
        by(
            "type",
            dict.fromkeys(("any", "auto", "none"), _ANY_TOOL) | {"tool": Members({}, needs=("name",), others=True)},
        ),
        NULL,
    ),
    "thinking": a(OBJECT, NULL),
    "output_config": a(OBJECT, NULL),
    "stop_sequences": a(Each(STRING), NULL),
}
