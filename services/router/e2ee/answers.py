"""Responsible for encrypting answers (e2ee-v2 §5 and §6): whole bodies, or streams event by event.

Nothing leaves here in clear that an answer says. What cannot be understood is not passed on; nor are an engine's own
words about an error, which may quote the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from libs.aci import rewriting
from libs.aci.e2ee.fields import AnswerNotUnderstood, visit_answer
from libs.aci.error_bodies import error_body
from libs.aci.json_values import has_more_values, most_values, weight
from libs.aci.rewriting import JsonNotRewritable, is_text
from libs.aci.sse import DONE, Event, EventSplitter, parse_event
from libs.errors import MeshError
from services.router.e2ee.opening import Envelope
from services.router.errors import AnswerUndeliverable, UpstreamFailed

MAX_BYTES = 16 << 20
"""Of an answer that is not streamed, or of one event, before it is encrypted: that doubles what it says."""

MOST_VALUES = 1 << 20
"""Of an answer that is not streamed: a thousand embeddings of a thousand numbers, which take some 130 MB to seal."""
MOST_EVENT_VALUES = 1 << 16
"""Of one event."""

_SUCCESS = 200
_EMBEDDING = ".embedding"
_UNTOLD = "the engine refused the request; its own words are kept back, as they may quote what came encrypted"
_PLAIN_TYPE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Cover(Protocol):
    """Stands between an answer and whoever it is withheld from."""

    @property
    def suite(self) -> str | None:
        """Under which suite it goes back, None if in clear."""
        ...

    def weight(self, data: bytes = b"") -> int:
        """How much it is to be fed these bytes, or to finish if there are none: in JSON values, at most."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the answer; return what becomes of them, as far as that is known. Raises
        `UpstreamFailed`. Of many values it takes long.
        """
        ...

    def finish(self) -> bytes:
        """The answer is whole: return the rest. Raises `UpstreamFailed`. Of many values it takes long."""
        ...

    def told(self) -> Sequence[int]:
        """Return how many bytes each event said that was encrypted since this was asked: it can tell no more."""
        ...


class Clear:
    """Of an answer to a request that came in clear."""

    suite = None

    def weight(self, data: bytes = b"") -> int:
        return 0

    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""

    def told(self) -> Sequence[int]:
        return ()


class SealedBody:
    """Of an answer that goes out at once. One that is no success has nothing to encrypt, and is stripped of words."""

    def __init__(self, envelope: Envelope, status: int) -> None:
        self.suite = envelope.suite.algo if status == _SUCCESS else None
        self._envelope = envelope
        self._times = _times(envelope)
        self._body = bytearray()

    def weight(self, data: bytes = b"") -> int:
        return 0 if data else self._times * weight(self._body)

    def feed(self, data: bytes) -> bytes:
        self._body += data
        _bound(len(self._body))
        return b""

    def finish(self) -> bytes:
        body = bytes(self._body)
        return _quiet(body) if self.suite is None else _sealed(self._envelope, body, MOST_VALUES)[0]

    def told(self) -> Sequence[int]:
        return ()


class SealedStream:
    """Of a stream. What is no event yet stays here."""

    def __init__(self, envelope: Envelope) -> None:
        self.suite = envelope.suite.algo
        self._envelope = envelope
        self._times = _times(envelope)
        self._splitter = EventSplitter()
        self._told: list[int] = []
        self._pending_values = 0

    def weight(self, data: bytes = b"") -> int:
        return self._times * (self._pending_values + most_values(data))

    def feed(self, data: bytes) -> bytes:
        came = self._splitter.feed(data)
        # What is left is of these bytes, where they completed any event: its values are no more than theirs.
        self._pending_values = most_values(data) + (0 if came else self._pending_values)
        events = [self._event(event) for event in came]
        _bound(self._splitter.pending)
        return b"".join(events)

    def finish(self) -> bytes:
        if self._splitter.at_boundary():
            return b""
        if not self._splitter.between_events():
            raise UpstreamFailed("the stream ended within an event")
        return self._event(parse_event(self._splitter.take()))

    def told(self) -> Sequence[int]:
        told, self._told = self._told, []
        return told

    def _event(self, event: Event) -> bytes:
        if not event.data:
            return b":\n\n"  # It keeps the connection open; what it says is for nobody.
        if event.data.strip() == "[DONE]":
            return DONE
        sealed, octets = _sealed(self._envelope, event.data.encode(), MOST_EVENT_VALUES)
        self._told.append(octets)
        return b"data: " + sealed + b"\n\n"


def cover(envelope: Envelope | None, *, streams: bool, status: int) -> Cover:
    """Return what an answer goes through."""
    if envelope is None:
        return Clear()
    return SealedStream(envelope) if streams else SealedBody(envelope, status)


def _times(envelope: Envelope) -> int:
    """Return how many times longer a value takes where some are sealed, each with a key agreement of its own: of three
    one may be, of forty one is.
    """
    return envelope.suite.agreement_values // 8


def _sealed(envelope: Envelope, text: bytes, most: int) -> tuple[bytes, int]:
    """Return it sealed, and how many bytes of it were."""
    octets = 0
    if has_more_values(text, most):
        raise AnswerUndeliverable(f"the answer has more than the {most} JSON values that can be encrypted at once")
    try:
        members = rewriting.loads(text)
        if not isinstance(members, dict):
            raise AnswerNotUnderstood("the answer is not an object")
        if members.get("error") is not None:
            return _quiet(text), 0
        response_id = members.get("id")
        named = response_id if is_text(response_id) else ""

        def seal(path: str, value: Any) -> str:
            nonlocal octets
            # An embedding is JSON also where it is a text (§5): base64 is the other form of its numbers.
            is_plain = is_text(value) and not path.endswith(_EMBEDDING)
            plaintext = value.encode("utf-8") if is_plain else rewriting.dumps(value)
            octets += len(plaintext)
            return envelope.suite.seal(envelope.client, plaintext, envelope.binding.of_response(path, named))

        return rewriting.dumps(visit_answer(members, seal)), octets
    except (MeshError, UnicodeEncodeError) as error:
        raise AnswerUndeliverable("the answer cannot be encrypted") from error


def _quiet(text: bytes) -> bytes:
    """An error in the usual shape, without the words of whoever reports it."""
    try:
        members = None if has_more_values(text, MOST_EVENT_VALUES) else rewriting.loads(text)
    except JsonNotRewritable:
        members = None
    reported = members.get("error") if isinstance(members, dict) else None
    named = reported.get("type") if isinstance(reported, dict) else None
    if not is_text(named) or _PLAIN_TYPE.fullmatch(named) is None:
        named = UpstreamFailed.type
    return error_body(named, _UNTOLD)


def _bound(size: int) -> None:
    if size > MAX_BYTES:
        raise AnswerUndeliverable(f"the response is longer than the {MAX_BYTES} bytes that can be withheld")
