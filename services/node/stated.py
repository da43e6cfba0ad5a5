"""It is responsible for what an answer says of its own tokens, without holding the answer.

An object that is short enough is read whole. Of a longer one, and of what a stream says before its last events, nothing
is known here.
"""

from __future__ import annotations

import json

from libs.aci.endpoints import JSON
from libs.aci.sse import EventSplitter, Protocol
from libs.aci.usage import Tokens, tokens_of, tokens_of_event

_LONGEST_OBJECT = 128 << 10
_LONGEST_EVENTS = 8 << 10
"""Bytes of a stream's end."""


class Stated:
    """One answer, fed as it goes by."""

    def __init__(self, content_type: str, protocol: Protocol) -> None:
        self._is_object = content_type == JSON
        self._protocol = protocol
        self._kept = _LONGEST_OBJECT if self._is_object else _LONGEST_EVENTS
        self._end = bytearray()
        self._is_whole = True

    def feed(self, chunk: bytes) -> None:
        self._end += chunk
        if len(self._end) > 2 * self._kept:
            del self._end[: -self._kept]
            self._is_whole = False

    def tokens(self) -> Tokens:
        """Return what the answer said, at its end."""
        return self._of_object() if self._is_object else self._of_stream()

    def _of_object(self) -> Tokens:
        try:
            value = json.loads(self._end) if self._is_whole else None
        except (ValueError, RecursionError):
            return Tokens()
        return tokens_of(value, self._protocol) if isinstance(value, dict) else Tokens()

    def _of_stream(self) -> Tokens:
        said = Tokens()
        for event in EventSplitter().feed(bytes(self._end)):
            said = said.then(tokens_of_event(event, self._protocol))
        return said
