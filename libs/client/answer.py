"""Responsible for one response as it comes: its text for the user, its raw bytes as a hash and no more, unless they are
to be kept.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from libs.aci.sse import Event, EventSplitter, Mark, Protocol, mark
from libs.client.exchange import Exchange, delta_text, message_text
from libs.client.http import AnswerTooLarge, AnswerUnreadable
from libs.client.sealing import AnswerNotSealed, SealedRequest
from libs.errors import Code, MeshError

MAX_RESPONSE_BYTES = 32 << 20
_MAX_EVENT_BYTES = 1 << 20


class AnswerBrokenOff(MeshError):
    """The router reported a failure inside the stream, or ended it before its end."""

    code = Code.UNAVAILABLE
    reason = "ANSWER_BROKEN_OFF"


class AnswerNotRead(MeshError):
    """The response was not read to its end, so its hash is not known."""

    reason = "ANSWER_NOT_READ"


class Answer:
    """Iterate over it for the text: many pieces from a stream, one from a buffered response.

    A failure that the router reports inside the stream is raised after all of it was read, so the exchange can be
    verified all the same: what was emitted is receipted.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        request: bytes,
        sent_at: float,
        *,
        keep: bool = False,
        sealed: SealedRequest | None = None,
    ) -> None:
        self._response = response
        self._request = request
        self._sealed = sealed
        self._sent_at = sent_at
        self._hash = hashlib.sha256()
        self._size = 0
        self._kept = bytearray() if keep else None
        self._received_at: float | None = None
        self.receipt_id: str | None = response.headers.get("X-Receipt-Id")

    @property
    def exchange(self) -> Exchange:
        """What can be verified, once all was read. Raises `AnswerNotRead`."""
        if self._received_at is None:
            raise AnswerNotRead("read the answer to its end before you verify it")
        return Exchange(
            request=self._request,
            response_hash="sha256:" + self._hash.hexdigest(),
            receipt_id=self.receipt_id,
            sent_at=self._sent_at,
            received_at=self._received_at,
            sealed_to=None if self._sealed is None else self._sealed.client_key_sha256,
            response=None if self._kept is None else bytes(self._kept),
        )

    async def __aiter__(self) -> AsyncIterator[str]:
        """Raises `AnswerBrokenOff`, `AnswerUnreadable`, `AnswerTooLarge` or `RouterUnreachable`; of a request that was
        encrypted `AnswerNotSealed`, once all was read: nothing is given out from there on.
        """
        pieces = self._streamed() if self._response.content_type == "text/event-stream" else self._buffered()
        async for piece in pieces:
            yield piece

    async def _streamed(self) -> AsyncIterator[str]:
        splitter, failure, ended = EventSplitter(), "", False
        unsealed: AnswerNotSealed | None = None
        async for chunk in self._chunks():
            for event in splitter.feed(chunk):
                match mark(event, Protocol.CHAT):
                    case Mark.ERROR:
                        failure = _reported(event)
                    case Mark.TERMINAL:
                        ended = True
                    case _ if unsealed is None:
                        try:
                            text = delta_text(self._read(event.data))
                        except AnswerNotSealed as error:
                            unsealed, text = error, ""
                        if text:
                            yield text
            if splitter.pending > _MAX_EVENT_BYTES:
                raise AnswerTooLarge("one event of the stream is too long")
        if unsealed is not None:
            raise unsealed
        if failure:
            raise AnswerBrokenOff(f"the router reports: {failure}")
        if not ended:
            raise AnswerBrokenOff("the stream ended before its end")

    async def _buffered(self) -> AsyncIterator[str]:
        body = bytearray()
        async for chunk in self._chunks():
            body += chunk
        text = message_text(self._read(bytes(body)))
        if not text:
            raise AnswerUnreadable("the response holds no message")
        yield text

    def _read(self, data: str | bytes) -> Any:
        """The JSON of an event or a body in clear, None if it is none. Raises `AnswerNotSealed`."""
        if self._sealed is not None and data:
            return self._sealed.open(data)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return None

    async def _chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.content.iter_any():
            self._hash.update(chunk)
            self._size += len(chunk)
            if self._size > MAX_RESPONSE_BYTES:
                raise AnswerTooLarge(f"the response is longer than {MAX_RESPONSE_BYTES} bytes")
            if self._kept is not None:
                self._kept += chunk
            yield chunk
        self._received_at = time.time()


def _reported(event: Event) -> str:
    error = (event.json() or {}).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or "an error without a message")[:500]
