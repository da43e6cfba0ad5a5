"""Responsible for answers that are not streamed: how large one may be, and which nodes give theirs in one message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_ANSWER_BYTES = 16 << 20
"""The body. A router withholds all of it, and refuses what is longer however it comes."""
MAX_MESSAGE_BYTES = MAX_ANSWER_BYTES + (1 << 20)
"""The body with its head and its receipt."""

CLAIM = "whole_answers"
TOO_LARGE = "ANSWER_TOO_LARGE"
"""The reason of a node whose answer is longer than the body may be."""


def given_by(claims: Mapping[str, Any]) -> bool:
    """Say whether a node gives whole answers, by its claims; one that was measured before there were any does not."""
    return claims.get(CLAIM) is True
