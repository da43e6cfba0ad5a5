"""It is responsible for which members a request body may have at each endpoint, and how much some of them may ask.

It is an allow list. Engines read members that nobody here has heard of, and some of them choose a cache, a slot, an
adapter, a template or a file: one that is not in `KNOWN` reaches no engine, nor does one that is in `UNTOLD`. What
they hold is in `api`. Each that is known stands in `SAMPLING` or in `BESIDE_SAMPLING`, so that it was decided whether
receipts name it.

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

_CACHED = frozenset({"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"})
_MARKED = frozenset({"cache_control"})
UNTOLD = _CACHED | _MARKED
"""What clients may say of a service's cache. It asks for nothing that an answer shows, and whose prompts share a cache
is not theirs to say: it is taken out of the body."""

KNOWN: Mapping[Endpoint, frozenset[str]] = {
    CHAT: _EVERYWHERE | _CHAT | _CACHED,
    COMPLETIONS: _EVERYWHERE | _GENERATED | {"best_of", "echo", "prompt", "suffix"},
    EMBEDDINGS: _EVERYWHERE | {"dimensions", "encoding_format", "input", "user"},
    MESSAGES: _EVERYWHERE | _MESSAGES | _MARKED,
    COUNT_TOKENS: _EVERYWHERE | _COUNTED | _MARKED,
    RESPONSES: _EVERYWHERE | _RESPONSES | _CACHED,
}

SAMPLING = frozenset(
    {
        "best_of",
        "frequency_penalty",
        "function_call",
        "functions",
        "ignore_eos",
        "logit_bias",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "max_tool_calls",
        "min_p",
        "min_tokens",
        "modalities",
        "n",
        "output_config",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "reasoning",
        "reasoning_effort",
        "repeat_penalty",
        "repetition_penalty",
        "response_format",
        "seed",
        "stop",
        "stop_sequences",
        "temperature",
        "text",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
        "typical_p",
        "verbosity",
    }
)
"""What decides, beside the prompt, which tokens are sampled: how, how many, until when, and into which form."""

BESIDE_SAMPLING = frozenset(
    {
        "background",
        "cache_control",
        "conversation",
        "dimensions",
        "echo",
        "encoding_format",
        "include",
        "input",
        "instructions",
        "logprobs",
        "messages",
        "metadata",
        "model",
        "previous_response_id",
        "prompt",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "provider",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "suffix",
        "system",
        "top_logprobs",
        "truncation",
        "user",
    }
)
"""The prompt itself, what is told beside the tokens, and what is nothing to the engine. A receipt has the prompt in the
hash of the body, and the model by its name."""

MOST: Mapping[str, int] = {"best_of": 20, "logprobs": 5, "n": 128, "top_logprobs": 20}
"""What sizes the engine's memory or work, and how much it may be: OpenAI's own bounds."""

LONGEST: Mapping[str, int] = {"logit_bias": 1024, "stop": 64, "stop_sequences": 64}
"""How many entries there may be of what is gone through for every token."""
