"""It is responsible for what a request's body holds at each endpoint.

Engines answer some of what is no request of their APIs as if they themselves had failed, and read members of parts that
nobody here has heard of. By `uuid` vLLM keeps what a part shows, and finds it for every tenant, whatever salt the
request has: who names another's is shown what that one showed, or has that one answered about what was never sent. So
these tables are of what is taken, wherever a prompt stands: no other member of it reaches an engine, and no part that
has nothing in it to show. What settings hold is judged where engines fail on it, and theirs to judge elsewhere.

`null` is taken where the APIs, or clients that send answers back, have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.aci.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from services.node.api import chat, messages, responses
from services.node.api.kinds import FLAG, NULL, OBJECT, STRING, TEXT, Each, EngineTakes, Members, Token, Value, Word, a

BEYOND_TEXT = frozenset(
    {
        "audio_url",
        "document",
        "file",
        "image",
        "image_url",
        "input_audio",
        "input_file",
        "input_image",
        "tool_reference",
        "video_url",
    }
)
"""Types of parts that are more than text."""

_EVERYWHERE = {
    "metadata": a(OBJECT, NULL),
    "provider": a(OBJECT, NULL),
    "stop": a(TEXT, Each(STRING), NULL),
    "stream": a(FLAG, NULL),
    "stream_options": a(OBJECT, NULL),
}
_TOKENS = a(TEXT, Token(), Each(a(Token()), fewest=1))
_PROMPTS = a(TEXT, Each(_TOKENS, fewest=1, numbers_apart=True))
"""One or several, of text or of tokens by their numbers."""
_ENCODED = Word(frozenset({"base64", "float"}))
"""Of vLLM's others an answer is no JSON."""


def _body(needs: str, rows: Mapping[str, Value]) -> Members:
    # Which others there may be is in `members`.
    return Members({**_EVERYWHERE, **rows}, needs=(needs,), others=True)


BODIES: Mapping[Endpoint, Members] = {
    CHAT: _body("messages", chat.BODY),
    COMPLETIONS: _body("prompt", {"prompt": _PROMPTS}),
    EMBEDDINGS: _body("input", {"input": _PROMPTS, "encoding_format": a(_ENCODED, NULL)}),
    MESSAGES: _body("messages", messages.BODY),
    COUNT_TOKENS: _body("messages", messages.BODY),
    RESPONSES: _body("input", responses.BODY),
}


def require_taken(body: Mapping[str, Any], endpoint: Endpoint, engine: EngineTakes) -> None:
    """Raise `ShapeRefused`, `MemberRefused` or `MediaUrlRefused` for what is wrong first in a body."""
    fault = BODIES[endpoint].fault(body, engine)
    if fault is not None:
        raise fault.refusal()
