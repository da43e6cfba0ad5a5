"""Responsible for holding back the end of a response until the ledger has its receipt.

A buffered response is withheld entirely, status included. A stream goes out event by event up to the first that carries
a finish reason; that one and all after it are withheld. What is withheld is already in the hash that the receipt
commits to, so releasing it adds nothing that is not logged. The owner MUST send what `feed` returns, and `withheld`
only after a verified acknowledgement; if none comes it sends another end and logs `emitted_hash` of it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from libs.aci import sse
from libs.aci.encoding import digest
from libs.aci.endpoints import EVENT_STREAM, Endpoint
from libs.aci.error_bodies import error_type_in
from libs.aci.json_values import has_more_values, most_values
from libs.aci.sse import DONE, Event, EventSplitter, Mark
from libs.aci.usage import Tokens, tokens_of, tokens_of_event
from libs.aci.whole_answers import MAX_ANSWER_BYTES
from services.router.errors import AnswerUndeliverable, RouterError

MAX_WITHHELD_BYTES = MAX_ANSWER_BYTES
MOST_VALUES = 1 << 21
"""Of an answer that is read for its id and tokens: of one with more, neither is known."""


class BufferedResponse:
    """A response of which nothing goes out before its receipt is logged."""

    streams = False

    def __init__(self, endpoint: Endpoint, limit: int = MAX_WITHHELD_BYTES) -> None:
        self._protocol = endpoint.protocol
        self._limit = limit
        self._body = bytearray()
        self._read: tuple[int, dict[str, Any] | None] | None = None

    @property
    def withheld(self) -> bytes:
        return bytes(self._body)

    @property
    def body_hash(self) -> str:
        """The hash for `response.returned`: over all of the body."""
        return digest(self.withheld)

    @property
    def chat_id(self) -> str | None:
        """The response's own id, when the body is JSON and has one."""
        value = self._members()
        return None if value is None else sse.id_of(value, self._protocol)

    @property
    def tokens(self) -> Tokens:
        """What the response says of its tokens."""
        value = self._members()
        return Tokens() if value is None else tokens_of(value, self._protocol)

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the body; nothing may go out. Raises `AnswerUndeliverable` when it grows too large."""
        if len(self._body) + len(data) > self._limit:
            raise _too_large(self._limit)
        self._body += data
        return b""

    def complete(self) -> None:
        """The upstream ended the response; its body is what came."""

    def fail(self, error: RouterError) -> None:
        """The upstream broke off: what goes out, under its status, is the error in place of what came."""
        self._body[:] = error.told(self._protocol)[1]
        self._read = None

    @property
    def values(self) -> int:
        """How many JSON values the body has, at most."""
        return most_values(self._body)

    def read(self) -> None:
        """Read the whole body for what it says of itself. Of many values that takes long."""
        self._members()

    def _members(self) -> dict[str, Any] | None:
        """The body, when it is a JSON object. It is read once, when it is whole."""
        if self._read is None or self._read[0] != len(self._body):
            try:
                # No fraction says anything here, and embeddings have a great many.
                large = has_more_values(self._body, MOST_VALUES)
                value = None if large else json.loads(self._body, parse_float=_untold)
            except (ValueError, RecursionError):
                value = None
            self._read = len(self._body), value if isinstance(value, dict) else None
        return self._read[1]

    def emitted_hash(self, end: bytes = b"") -> str:
        """Return the hash of what went out when `end` replaced what was withheld."""
        return digest(end)

    def error_end(self, error: RouterError) -> bytes:
        """Return what to send in place of what is withheld."""
        return error.told(self._protocol)[1]


def _untold(number: str) -> None:
    """Python code, in which a thread passes on its turn."""


class StreamedResponse:
    """An event stream of which all goes out but the end."""

    streams = True

    def __init__(self, endpoint: Endpoint, limit: int = MAX_WITHHELD_BYTES) -> None:
        self._protocol = endpoint.protocol
        self._limit = limit
        self._splitter = EventSplitter()
        self._released = hashlib.sha256()
        self._withheld = bytearray()
        self._finishing = False
        self._closed = False
        self._last_seen = -1
        self._last_released = -1
        self._chat_id: str | None = None
        self._tokens = Tokens()

    @property
    def withheld(self) -> bytes:
        """What has come and was not returned by `feed`, and what was appended: events first, then an unfinished one."""
        return bytes(self._withheld) + self._splitter.tail

    @property
    def body_hash(self) -> str:
        """The hash for `response.returned`: over what went out and what is withheld."""
        return self.emitted_hash(self.withheld)

    @property
    def chat_id(self) -> str | None:
        """The response's own id, once an event carried one."""
        return self._chat_id

    @property
    def tokens(self) -> Tokens:
        """What the response has said of its tokens by now."""
        return self._tokens

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return what may go out now. Raises `AnswerUndeliverable` when too much is withheld."""
        released = bytearray()
        for event in self._splitter.feed(data):
            self._observe(event)
            if self._finishing:
                self._withheld += event.raw
            else:
                released += event.raw
                self._last_released = self._last_seen
        if len(self._withheld) + self._splitter.pending > self._limit:
            # What this call does not return is not out: it stays in its place, before what was withheld already.
            self._withheld[:0] = released
            raise _too_large(self._limit)
        self._released.update(released)
        return bytes(released)

    def complete(self) -> None:
        """The upstream ended the stream cleanly: append the terminal that the chat protocol lacks then.

        The other protocols' terminals carry state that must not be invented, and nothing is appended inside an event.
        """
        if self._protocol is sse.Protocol.CHAT and not self._closed and self._splitter.at_boundary():
            self._append(DONE)

    def fail(self, error: RouterError) -> None:
        """The upstream broke off: append the protocol's error, unless it ended already or stopped within an event."""
        if not self._closed and self._splitter.between_events():
            self._append(self._error_after(error, self._last_seen))

    def emitted_hash(self, end: bytes = b"") -> str:
        """Return the hash of what went out when `end` replaced what was withheld."""
        whole = self._released.copy()
        whole.update(end)
        return "sha256:" + whole.hexdigest()

    def error_end(self, error: RouterError) -> bytes:
        """Return what to send in place of what is withheld. What went out before ends between events."""
        return self._error_after(error, self._last_released)

    def _error_after(self, error: RouterError, last: int) -> bytes:
        error_type = error_type_in(self._protocol, error.type)
        return sse.error_event(self._protocol, error_type, str(error), status=error.status, sequence_number=last + 1)

    def _append(self, end: bytes) -> None:
        self._withheld += self._splitter.take() + end
        self._closed = True

    def _observe(self, event: Event) -> None:
        mark = sse.mark(event, self._protocol)
        self._finishing = self._finishing or mark is not Mark.CONTENT
        self._closed = self._closed or mark in (Mark.TERMINAL, Mark.ERROR)
        if self._chat_id is None:
            self._chat_id = sse.response_id(event, self._protocol)
        self._tokens = self._tokens.then(tokens_of_event(event, self._protocol))
        if self._protocol is sse.Protocol.RESPONSES:
            number = (event.json() or {}).get("sequence_number")
            self._last_seen = number if isinstance(number, int) else self._last_seen


Withholding = BufferedResponse | StreamedResponse


def withhold(endpoint: Endpoint, *, stream: bool, status: int, content_type: str) -> Withholding:
    """Return how to hold back this response.

    Only a successful event stream that the client asked for is released in parts; one without a content type is taken
    as such, and everything else is withheld whole.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if stream and endpoint.streams and status == 200 and media_type in ("", EVENT_STREAM):
        return StreamedResponse(endpoint)
    return BufferedResponse(endpoint)


def _too_large(limit: int) -> AnswerUndeliverable:
    return AnswerUndeliverable(f"the response is longer than the {limit} bytes that can be withheld")
