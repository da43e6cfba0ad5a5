"""Responsible for the smallest question of each endpoint: what an engine must answer before it is believed to serve."""

from __future__ import annotations

from typing import Any

from libs.aci.endpoints import COMPLETIONS, EMBEDDINGS, RESPONSES, Endpoint

_TEXT = "Hi"
_LEAST_OUTPUT_TOKENS = 16
"""Fewer some engines refuse at /v1/responses, as OpenAI does."""


def question(endpoint: Endpoint, model: str) -> dict[str, Any]:
    """Return the request's members."""
    asked: dict[str, Any] = {"model": model}
    if endpoint == COMPLETIONS:
        return asked | {"prompt": _TEXT, "max_tokens": 1}
    if endpoint == EMBEDDINGS:
        return asked | {"input": _TEXT}
    if endpoint == RESPONSES:
        return asked | {"input": _TEXT, "max_output_tokens": _LEAST_OUTPUT_TOKENS}
    messages = [{"role": "user", "content": _TEXT}]
    return asked | {"messages": messages} | ({"max_tokens": 1} if endpoint.runs_model else {})
