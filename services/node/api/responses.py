"""It is responsible for what a body at responses holds, as OpenAI's API reference has it.

What names something that was stored (`item_reference`, `file_id`) and what a provider's own tools make are not there:
nobody here has them.
"""

from __future__ import annotations

from services.node.api.chat import AUDIO, CHOICE, MARK
from services.node.api.kinds import (
    ANYTHING,
    NULL,
    OBJECT,
    SIMPLE,
    STRING,
    TEXT,
    Each,
    Json,
    Members,
    Url,
    Word,
    a,
    by,
    members,
    simple,
)

_TEXT = members("text", text=STRING)
_INPUTS = {
    "input_text": _TEXT.also(**MARK),
    "input_image": members("image_url", image_url=a(Url()), **simple("detail"), **MARK),
    "input_file": members(file_url=a(Url(), NULL), **simple("detail", "file_data", "filename"), **MARK),
}
PARTS = by(
    "type",
    {
        **_INPUTS,
        "input_audio": members("input_audio", input_audio=AUDIO),
        "output_text": _TEXT.also(annotations=ANYTHING, logprobs=ANYTHING),
        "refusal": members("refusal", refusal=STRING),
    },
)
_ROLE = a(Word(frozenset({"assistant", "developer", "system", "user"})))
_REASONED = Each(a(by("type", {"reasoning_text": _TEXT})))
_SUMMED = Each(a(by("type", {"summary_text": _TEXT})))
_CALL = members(call_id=STRING, name=STRING, caller=ANYTHING, **simple("id", "namespace", "status"))
_CALLS_OUTPUT = _CALL.also(output=a(TEXT, Each(a(by("type", _INPUTS)))))
ITEMS = by(
    "type",
    {
        "message": members(role=_ROLE, content=a(TEXT, Each(a(PARTS)), NULL), **simple("id", "phase", "status")),
        "reasoning": members(
            content=a(TEXT, _REASONED, NULL), summary=a(_SUMMED), **simple("encrypted_content", "id", "status")
        ),
        "function_call": _CALL.also(**{"arguments": a(Json()), "async": SIMPLE}),
        "function_call_output": _CALLS_OUTPUT,
        "custom_tool_call": _CALL.also(**{"async": SIMPLE, "input": SIMPLE}),
        "custom_tool_call_output": _CALLS_OUTPUT,
    },
    unsaid="message",
)
_TOOL = Members({"name": STRING, "description": a(TEXT, NULL), "parameters": a(OBJECT, NULL)}, others=True)

BODY = {
    "input": a(TEXT, Each(a(ITEMS), fewest=1)),
    "instructions": a(TEXT, NULL),
    "include": a(Each(STRING), NULL),
    "tools": a(Each(a(by("type", {"function": _TOOL.also("name")}, others=_TOOL))), NULL),
    "tool_choice": CHOICE,
    "reasoning": a(OBJECT, NULL),
    "text": a(OBJECT, NULL),
}
