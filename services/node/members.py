"""It is responsible for which members a request body may have at each endpoint, and how much some of them may ask.

It is an allow list. Engines read members that nobody here has heard of, and some of them choose a cache, a slot, an
adapter, a template or a file: one that is not in `KNOWN` reaches no engine. What messages are made of is in
`services.node.parts`, and the rest is the engine's to judge.

The names are those of OpenAI's and of Anthropic's API references, and of the sampling settings that vLLM and llama.cpp
document beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

from libs.aci.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint

_EVERYWHERE = frozenset({"model", "provider", "stream"})
"""`provider` is the mesh's own: a router takes from it what is meant for itself. Clients say `stream: false` also
where nothing streams."""

_GENERATED = frozenset(
    {
        "frequency_penalty",
        "ignore_eos",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "min_p",
        "min_tokens",
        "n",
        "presence_penalty",
        "repeat_penalty",
        "repetition_penalty",
        "seed",
        "stop",
        "stream_options",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "user",
    }
)
_CHAT = _GENERATED | {
    "function_call",
    "functions",
    "max_completion_tokens",
    "messages",
    "metadata",
    "modalities",
    "parallel_tool_calls",
    "prediction",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "service_tier",
    "store",
    "tool_choice",
    "tools",
    "top_logprobs",
    "verbosity",
}
_COUNTED = frozenset({"messages", "output_config", "system", "thinking", "tool_choice", "tools"})
_MESSAGES = _COUNTED | {
    "max_tokens",
    "metadata",
    "service_tier",
    "stop_sequences",
    "temperature",
    "top_k",
    "top_p",
}
_RESPONSES = frozenset(
    {
        "background",
        "conversation",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_k",
        "top_logprobs",
        "top_p",
        "truncation",
        "user",
    }
)

KNOWN: Mapping[Endpoint, frozenset[str]] = {
    CHAT: _EVERYWHERE | _CHAT,
    COMPLETIONS: _EVERYWHERE | _GENERATED | {"best_of", "echo", "prompt", "suffix"},
    EMBEDDINGS: _EVERYWHERE | {"dimensions", "encoding_format", "input", "user"},
    MESSAGES: _EVERYWHERE | _MESSAGES,
    COUNT_TOKENS: _EVERYWHERE | _COUNTED,
    RESPONSES: _EVERYWHERE | _RESPONSES,
}

MOST: Mapping[str, int] = {"best_of": 20, "logprobs": 5, "n": 128, "top_logprobs": 20}
"""What sizes the engine's memory or work, and how much it may be: OpenAI's own bounds."""

LONGEST: Mapping[str, int] = {"logit_bias": 1024, "stop": 64, "stop_sequences": 64}
"""How many entries there may be of what is gone through for every token."""
