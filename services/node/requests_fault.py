"""It is responsible for what an engine answers as if it had failed itself, though the request is at fault.

It is for what the engine alone can tell, as how many tokens a text has. All else `api` judges before it is asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_EMBEDDED_TOKENS = 2048
"""Of one input at the embedded engine. It is embedded at once, so the memory for that grows with it."""


@dataclass(frozen=True, slots=True)
class RequestsFault:
    """One of an engine's messages."""

    begins: re.Pattern[str]
    """How it begins, so that nothing of a request decides."""
    told: str
    """What the client is told instead."""


def of_embedded(context_tokens: int) -> tuple[RequestsFault, ...]:
    """Return those of the embedded engine, as `xllamacpp` has them."""
    most = min(context_tokens, MOST_EMBEDDED_TOKENS)
    return (
        RequestsFault(
            re.compile(r"input \([0-9]+ tokens\) is too large to process"),
            f"an input must have at most {most} tokens here",
        ),
        RequestsFault(
            re.compile(r"Failed to parse tool call arguments as JSON"), "the arguments of a call must be JSON"
        ),
    )
