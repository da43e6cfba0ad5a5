"""It is responsible for how many tokens an answer is at least, by what of it came: for those that do not say it.

A client that asks for no count, or leaves before it, must not get for nothing what its node made. Engines put a token
into an event, or several where whoever reads is slow: so texts count, too.
"""

from __future__ import annotations

from typing import Any

from libs.aci.sse import Event, EventSplitter

OCTETS_PER_COMPLETION_TOKEN = 4
"""Usual texts have about so many bytes a token."""


class Volume:
    """One answer in clear, fed as it comes. Its owner MUST bound how long an event may be."""

    def __init__(self, *, streams: bool) -> None:
        self._splitter = EventSplitter() if streams else None
        self._events = 0
        self._octets = 0

    def feed(self, data: bytes) -> None:
        if self._splitter is None:
            self._octets += len(data)
            return
        for event in self._splitter.feed(data):
            said = _said(event)
            self._events += said is not None
            self._octets += said or 0

    def tokens(self) -> int:
        """Return how many tokens came, at least or about."""
        return max(self._events, -(-self._octets // OCTETS_PER_COMPLETION_TOKEN))


def _said(event: Event) -> int | None:
    """Return how many bytes of text an event adds; None for one that is no part of an answer."""
    members = event.json()
    if members is None:
        return None
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
