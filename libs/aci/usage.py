"""It is responsible for what an answer says of its own tokens: the `usage` of OpenAI's and Anthropic's answers.

It is the engine's word, and nothing here counts. Streams of chat carry it only where the request asks for it
(`stream_options.include_usage`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libs.aci.sse import Event, Protocol

MOST_TOKENS = 1 << 40
"""What is said beyond it is not believed."""
_CACHED = ("cache_creation_input_tokens", "cache_read_input_tokens")
_HOLDERS = {Protocol.CHAT: None, Protocol.MESSAGES: "message", Protocol.RESPONSES: "response"}


@dataclass(frozen=True, slots=True)
class Tokens:
    """None: nothing was said."""

    prompt: int | None = None
    completion: int | None = None

    @property
    def stated(self) -> bool:
        """Whether both are known."""
        return self.prompt is not None and self.completion is not None

    def then(self, later: Tokens) -> Tokens:
        """Return both together: what is said later is what counts."""
        return Tokens(
            self.prompt if later.prompt is None else later.prompt,
            self.completion if later.completion is None else later.completion,
        )


def tokens_of(members: Mapping[str, Any], protocol: Protocol) -> Tokens:
    """Read one JSON object: of a stream's event, or a whole answer."""
    holder = _HOLDERS[protocol]
    inner = members if holder is None else members.get(holder)
    said = Tokens() if not isinstance(inner, Mapping) else _read(inner.get("usage"))
    return said if holder is None else said.then(_read(members.get("usage")))


def tokens_of_event(event: Event, protocol: Protocol) -> Tokens:
    """Read an event, without parsing those that say nothing of it."""
    members = event.json() if '"usage"' in event.data else None
    return Tokens() if members is None else tokens_of(members, protocol)


def _read(usage: Any) -> Tokens:
    if not isinstance(usage, Mapping):
        return Tokens()
    prompt = _first(usage, "prompt_tokens", "input_tokens")
    completion = _first(usage, "completion_tokens", "output_tokens")
    if prompt is not None:
        # Anthropic's count leaves out what came from a cache, or went into one.
        prompt += sum(_first(usage, name) or 0 for name in _CACHED)
    total = _first(usage, "total_tokens")
    if completion is None and prompt is not None and total == prompt:
        completion = 0  # Embeddings complete nothing, and do not say so.
    return Tokens(prompt, completion)


def _first(usage: Mapping[str, Any], *names: str) -> int | None:
    values = (usage.get(name) for name in names)
    return next((value for value in values if type(value) is int and 0 <= value <= MOST_TOKENS), None)
