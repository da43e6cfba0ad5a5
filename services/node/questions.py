"""Responsible for the questions that an engine must answer before it is believed to serve: the smallest of each
endpoint, or one with another text.
"""

from __future__ import annotations

from typing import Any

from libs.aci.endpoints import COMPLETIONS, EMBEDDINGS, RESPONSES, Endpoint

SHORT = "Hi"
_LEAST_OUTPUT_TOKENS = 16
"""Fewer some engines refuse at /v1/responses, as OpenAI does."""


def question(endpoint: Endpoint, model: str, text: str = SHORT) -> dict[str, Any]:
    """Return the request's members."""
    asked: dict[str, Any] = {"model": model}
    if endpoint == COMPLETIONS:
        return asked | {"prompt": text, "max_tokens": 1}
    if endpoint == EMBEDDINGS:
        return asked | {"input": text}
    if endpoint == RESPONSES:
        return asked | {"input": text, "max_output_tokens": _LEAST_OUTPUT_TOKENS}
    messages = [{"role": "user", "content": text}]
    return asked | {"messages": messages} | ({"max_tokens": 1} if endpoint.runs_model else {})
