"""Responsible for the text of an answer, given its raw bytes: of a stream, fed as it comes, or of a whole body.

No I/O, so an answer that was kept is read again as it was read when it came.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from libs.aci.sse import Event, EventSplitter, Mark, Protocol, mark
from libs.client.exchange import delta_text, message_text
from libs.client.http import AnswerTooLarge, AnswerUnreadable
from libs.client.sealing import AnswerNotSealed, Opener
from libs.errors import Code, MeshError

_MAX_EVENT_BYTES = 1 << 20


class AnswerBrokenOff(MeshError):
    """The router reported a failure inside the stream, or ended it before its end."""

    code = Code.UNAVAILABLE
    reason = "ANSWER_BROKEN_OFF"


class StreamedText:
    """Of a stream. `opener` opens what was encrypted."""

    def __init__(self, opener: Opener | None) -> None:
        self._opener = opener
        self._splitter = EventSplitter()
        self._failure = ""
        self._has_ended = False
        self._unsealed: AnswerNotSealed | None = None

    def feed(self, chunk: bytes) -> Iterator[str]:
        """Yield the text in the next bytes; none any more once something did not open. Raises `AnswerTooLarge`."""
        for event in self._splitter.feed(chunk):
            match mark(event, Protocol.CHAT):
                case Mark.ERROR:
                    self._failure = _reported(event)
                case Mark.TERMINAL:
                    self._has_ended = True
                case _ if self._unsealed is None:
                    if text := self._delta(event):
                        yield text
        if self._splitter.pending > _MAX_EVENT_BYTES:
            raise AnswerTooLarge("one event of the stream is too long")

    def finish(self) -> None:
        """All of the stream was fed. Raises `AnswerNotSealed` or `AnswerBrokenOff`."""
        if self._unsealed is not None:
            raise self._unsealed
        if self._failure:
            raise AnswerBrokenOff(f"the router reports: {self._failure}")
        if not self._has_ended:
            raise AnswerBrokenOff("the stream ended before its end")

    def _delta(self, event: Event) -> str:
        try:
            return delta_text(_read(event.data, self._opener))
        except AnswerNotSealed as error:
            self._unsealed = error
            return ""


def whole_text(body: bytes, opener: Opener | None) -> str:
    """Return the text of a buffered response. Raises `AnswerNotSealed` or `AnswerUnreadable`."""
    text = message_text(_read(body, opener))
    if not text:
        raise AnswerUnreadable("the response holds no message")
    return text


def _read(data: str | bytes, opener: Opener | None) -> Any:
    """The JSON of an event or a body in clear, None if it is none. Raises `AnswerNotSealed`."""
    if opener is not None and data:
        return opener.open(data)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _reported(event: Event) -> str:
    error = (event.json() or {}).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or "an error without a message")[:500]
