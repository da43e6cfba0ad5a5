"""It is responsible for what an engine must show before it serves: that no request finds in it what one of another
tenant's left, and, where nothing is known of it, that it wants its key.

It relies on the engine to count truly how much of a prompt it had cached, and on nothing where it does not count: then
it is not fit. What it counts wrongly is for those to know who measured it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from libs.aci.endpoints import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Endpoint
from libs.errors import Code, MeshError
from services.node.channel import EngineChannel, EngineUnavailable

_WORDS = (320, 2200)
"""Engines keep prompts in blocks: most of them of up to 256 tokens, for models that have a state besides of up to a
thousand. Of a shorter prompt they keep none. The longer one is asked where nothing of the other was found."""
_SHARE_OF_CONTEXT = 2
"""Words: of some of them a model makes two tokens."""
_REFUSED = (401, 403)

COUNTING = frozenset({CHAT, COMPLETIONS, MESSAGES, RESPONSES})
"""Where the API has a place for how much of a prompt was cached. Embeddings have none."""


class KeyIgnored(MeshError):
    """The engine answers whoever reaches its socket."""

    code = Code.FAILED_PRECONDITION
    reason = "ENGINE_KEY_IGNORED"


class PromptsShared(MeshError):
    """The engine has one request find what another left in it, or does not say that it has not."""

    code = Code.FAILED_PRECONDITION
    reason = "ENGINE_PROMPTS_SHARED"


async def require_key_wanted(another: EngineChannel, endpoint: Endpoint, model: str) -> None:
    """Raise `KeyIgnored` if the engine answers one who has another key.

    Raises `EngineUnavailable` or `EngineTooSlow` where it neither answers nor refuses.
    """
    status, _ = await another.ask(endpoint, model)
    if status == 200:
        raise KeyIgnored("the engine answers without its key: have its command want the one in its environment")
    if status not in _REFUSED:
        raise EngineUnavailable(f"the engine met another key with status {status}")


async def require_kept_apart(
    channel: EngineChannel, endpoint: Endpoint, model: str, *, salted: bool, parallel: int, context_tokens: int
) -> None:
    """Raise `PromptsShared` unless one prompt, asked again and again there, is found cached by nobody: with salts, by
    none who has another salt. It is unfit, too, where it says nothing of what it has by the same salt.

    Raises `EngineUnavailable` or `EngineTooSlow`.
    """
    for words in _WORDS:
        text = " ".join(["prompt"] * min(words, context_tokens // _SHARE_OF_CONTEXT))
        kept = await _kept_apart(channel, endpoint, model, text, salted=salted, parallel=parallel)
        if kept or not salted:
            return
    if kept is None:
        raise PromptsShared(
            f"the engine does not say at {endpoint.path} what it had cached of a prompt of the same salt"
        )


async def _kept_apart(
    channel: EngineChannel, endpoint: Endpoint, model: str, text: str, *, salted: bool, parallel: int
) -> int | None:
    """Return how many tokens were found by their own salt, None where it does not say. Raises what
    `require_kept_apart` does.
    """

    async def cached(**members: object) -> int | None:
        status, body = await channel.ask(endpoint, model, text, **members)
        if status != 200:
            raise EngineUnavailable(f"the engine answered a question at {endpoint.path} with status {status}")
        return _cached(body)

    mine = _salt() if salted else {}
    first, again = await cached(**mine), await cached(**mine)
    # As often as it takes prompts at once: it may keep one in each of its places.
    others = [await cached(**(_salt() if salted else {})) for _ in range(parallel)]
    if not salted and None in (first, again, *others):
        raise PromptsShared(f"the engine does not say at {endpoint.path} how much of a prompt it had cached")
    shared = max(tokens or 0 for tokens in (first, *others, *(() if salted else (again,))))
    if shared:
        raise PromptsShared(f"the engine had {shared} tokens cached of what another asked at {endpoint.path}")
    return again


def _salt() -> Mapping[str, str]:
    return {"cache_salt": secrets.token_hex(32)}


def _cached(body: bytes) -> int | None:
    """Return how many tokens of the prompt were cached, by whichever name the endpoint's own API has for it."""
    try:
        usage: Any = json.loads(body)["usage"]
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        said = usage.get("cache_read_input_tokens", details.get("cached_tokens"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return said if type(said) is int and said >= 0 else None
