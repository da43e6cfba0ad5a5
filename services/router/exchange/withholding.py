"""Responsible for holding back the end of a response until the ledger has its receipt.

A buffered response is withheld entirely, status included. A stream goes out event by event up to the first that carries
a finish reason; that one and all after it are withheld. What is withheld is already in the hash that the receipt
commits to, so releasing it adds nothing that is not logged. The owner MUST send what `release` returns, and `withheld`
only after a verified acknowledgement; if none comes it sends another end and logs `emitted_hash` of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from libs.aci import sse
from libs.aci.encoding import digest
from libs.aci.endpoints import EVENT_STREAM, Endpoint
from libs.aci.error_bodies import error_type_in
from libs.aci.json_values import weight
from libs.aci.sse import DONE, EventSplitter, Mark
from libs.aci.usage import Tokens
from libs.aci.whole_answers import MAX_ANSWER_BYTES
from services.router.errors import AnswerUndeliverable, RouterError
from services.router.exchange.notices import Notice, Said, notice, said_by

MAX_WITHHELD_BYTES = MAX_ANSWER_BYTES


class BufferedResponse:
    """A response of which nothing goes out before its receipt is logged. What it says of itself is what its owner was
    told by `read` once it was whole, and until then nothing.
    """

    streams = False

    def __init__(self, endpoint: Endpoint, limit: int = MAX_WITHHELD_BYTES) -> None:
        self._protocol = endpoint.protocol
        self._limit = limit
        self._body = bytearray()
        self.said = Said()

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
        return self.said.chat_id

    @property
    def tokens(self) -> Tokens:
        """What the response says of its tokens."""
        return self.said.tokens

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body; nothing may go out. Raises `AnswerUndeliverable` when it grows too large."""
        if len(self._body) + len(data) > self._limit:
            raise _too_large(self._limit)
        self._body += data

    def complete(self) -> None:
        """The upstream ended the response; its body is what came."""

    def fail(self, error: RouterError) -> None:
        """The upstream broke off: what goes out, under its status, is the error in place of what came."""
        self._body[:] = error.told(self._protocol)[1]
        self.said = Said()

    @property
    def weight(self) -> int:
        """How much it is to `read`, in JSON values."""
        return weight(self._body)

    def read(self) -> Said:
        """Read the whole body for what it says of itself, which is for the owner to put into `said`. It changes
        nothing, so it may go on in a thread while the exchange ends.
        """
        return said_by(self._body, self._protocol)

    def emitted_hash(self, end: bytes = b"") -> str:
        """Return the hash of what went out when `end` replaced what was withheld."""
        return digest(end)

    def error_end(self, error: RouterError) -> bytes:
        """Return what to send in place of what is withheld."""
        return error.told(self._protocol)[1]


class StreamedResponse:
    """An event stream of which all goes out but the end.

    Its owner feeds it, reads the events that come of that, and releases those: `feed` and `release` change it, `read`
    changes nothing and may be done in a thread.
    """

    streams = True

    def __init__(self, endpoint: Endpoint, limit: int = MAX_WITHHELD_BYTES) -> None:
        self._protocol = endpoint.protocol
        self._limit = limit
        self._splitter = EventSplitter()
        self._released = hashlib.sha256()
        self._withheld = bytearray()
        self._unread = False
        self._finishing = False
        self._closed = False
        self._last_seen = -1
        self._last_released = -1
        self._chat_id: str | None = None
        self._tokens = Tokens()

    @property
    def withheld(self) -> bytes:
        """What was not released, and what was appended: events first, then an unfinished one."""
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

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the events that they complete, to be read and released before anything else."""
        events = self._splitter.split(data)
        self._unread = bool(events)
        return events

    def read(self, events: Iterable[bytes]) -> list[Notice]:
        """Return what each of them says. One that takes long is read beside the event loop (`Reading`)."""
        return [notice(raw, self._protocol) for raw in events]

    def release(self, events: Sequence[bytes], notices: Sequence[Notice]) -> bytes:
        """Take what was read of them; return what may go out now. Raises `AnswerUndeliverable` when too much is
        withheld.
        """
        self._unread = False
        released = bytearray()
        for raw, said in zip(events, notices, strict=True):
            self._observe(said)
            if self._finishing:
                self._withheld += raw
            else:
                released += raw
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
        if self._unread:
            # These events are not there: what came after them has no place in the stream either.
            self._splitter.take()
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

    def _observe(self, said: Notice) -> None:
        self._finishing = self._finishing or said.mark is not Mark.CONTENT
        self._closed = self._closed or said.mark in (Mark.TERMINAL, Mark.ERROR)
        self._chat_id = self._chat_id or said.chat_id
        self._tokens = self._tokens.then(said.tokens)
        if said.sequence_number is not None:
            self._last_seen = said.sequence_number


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
