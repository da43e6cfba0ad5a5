"""It is responsible for how many tokens an answer is at least, by what of it came: for those that do not say it.

A client that asks for no count, or leaves before it, must not get for nothing what its node made. Engines put a token
into an event, or several where whoever reads is slow: so texts count, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OCTETS_PER_COMPLETION_TOKEN = 4
"""Usual texts have about so many bytes a token."""


class Volume:
    """What came of one answer."""

    def __init__(self) -> None:
        self._events = 0
        self._octets = 0

    def add(self, octets: int) -> None:
        """So many bytes of an answer came that is no stream."""
        self._octets += octets

    def add_event(self, octets: int | None) -> None:
        """An event came that adds so many bytes of text; None: it is no part of the answer."""
        self._events += octets is not None
        self._octets += octets or 0

    def tokens(self) -> int:
        """Return how many tokens came, at least or about."""
        return max(self._events, -(-self._octets // OCTETS_PER_COMPLETION_TOKEN))


def text_octets(members: Mapping[str, Any]) -> int:
    """Return how many bytes of text an event adds."""
    choices = members.get("choices")
    parts: list[Any] = [members.get("delta")]
    if isinstance(choices, list):
        parts += (choice.get(name) for choice in choices if isinstance(choice, dict) for name in ("delta", "text"))
    octets = 0
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            octets += len(part.encode("utf-8", "surrogatepass"))
        elif isinstance(part, dict | list):
            parts += part.values() if isinstance(part, dict) else part
    return octets
