"""Responsible for one response as it comes: its text for the user, its raw bytes for the record of the exchange."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp

from libs.client.exchange import Exchange
from libs.client.reading import StreamedText, whole_text
from libs.client.record import Record
from libs.client.sealing import Opener


class Answer:
    """Iterate over it for the text: many pieces from a stream, one from a buffered response.

    A failure that the router reports inside the stream is raised after all of it was read, so the exchange can be
    verified all the same: what was emitted is receipted.
    """

    def __init__(self, response: aiohttp.ClientResponse, record: Record, opener: Opener | None = None) -> None:
        self._response = response
        self._record = record
        self._opener = opener

    @property
    def exchange(self) -> Exchange:
        """What can be verified, once all was read. Raises `AnswerNotRead`."""
        return self._record.exchange()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Raises `AnswerBrokenOff`, `AnswerUnreadable`, `AnswerTooLarge` or `RouterUnreachable`; of a request that was
        encrypted `AnswerNotSealed`, once all was read: nothing is given out from there on.
        """
        if self._response.content_type != "text/event-stream":
            yield whole_text(await self._record.take_all(self._response), self._opener)
            return
        text = StreamedText(self._opener)
        async for chunk in self._record.take(self._response):
            for piece in text.feed(chunk):
                yield piece
        text.finish()
