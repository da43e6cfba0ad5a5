"""Responsible for one exchange while it comes: what was sent, and as much of the response as came.

Whatever ends it early, what came until then is there: what a client can keep must not depend on how a router ends.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator

import aiohttp

from libs.client.exchange import Exchange
from libs.client.http import AnswerTooLarge
from libs.client.reopening import opening_key
from libs.client.sealing import Opener, SealedRequest
from libs.errors import MeshError

MAX_RESPONSE_BYTES = 32 << 20


class AnswerNotRead(MeshError):
    """The response was not read to its end, so its hash is not known."""

    reason = "ANSWER_NOT_READ"


class Record:
    """Of one request. It holds the response's hash and no more, unless that is to be kept."""

    def __init__(self, *, keep: bool = False) -> None:
        self._request: bytes | None = None
        self._opener: Opener | None = None
        self._sent_at = 0.0
        self._receipt_id: str | None = None
        self._hash = hashlib.sha256()
        self._size = 0
        self._kept = bytearray() if keep else None
        self._received_at: float | None = None

    @property
    def is_sent(self) -> bool:
        """Whether any of the request may have reached the router."""
        return self._request is not None

    def begin(self, body: bytes, sent_at: float, sealed: SealedRequest | None) -> None:
        """The request goes out now, as it is or `sealed`."""
        self._request, self._sent_at = body if sealed is None else sealed.clear, sent_at
        self._opener = None if sealed is None else sealed.opener

    def name(self, receipt_id: str | None) -> None:
        """The response names its receipt."""
        self._receipt_id = receipt_id

    async def take(self, response: aiohttp.ClientResponse, limit: int = MAX_RESPONSE_BYTES) -> AsyncIterator[bytes]:
        """Yield the raw body as it comes. Raises `AnswerTooLarge`: of what is longer, what comes before is there."""
        async for chunk in response.content.iter_any():
            if self._size + len(chunk) > limit:
                raise AnswerTooLarge(f"the response is longer than {limit} bytes")
            self._hash.update(chunk)
            self._size += len(chunk)
            if self._kept is not None:
                self._kept += chunk
            yield chunk
        self._received_at = self._now()

    async def take_all(self, response: aiohttp.ClientResponse, limit: int = MAX_RESPONSE_BYTES) -> bytes:
        """Return the raw body. Raises `AnswerTooLarge`."""
        return b"".join([chunk async for chunk in self.take(response, limit)])

    def exchange(self, broken_off: str | None = None) -> Exchange:
        """Return what can be verified, once all was read; sooner only with the reason why no more is read.

        Raises `AnswerNotRead`.
        """
        ended = broken_off is not None or self._received_at is not None
        if self._request is None or not ended:
            raise AnswerNotRead("read the answer to its end before you verify it")
        return Exchange(
            request=self._request,
            response_hash="sha256:" + self._hash.hexdigest(),
            receipt_id=self._receipt_id,
            sent_at=self._sent_at,
            received_at=self._now() if self._received_at is None else self._received_at,
            response=None if self._kept is None else bytes(self._kept),
            broken_off=broken_off,
            sealed_to=None if self._opener is None else self._opener.client_key_sha256,
            opening_key=None if self._opener is None or self._kept is None else opening_key(self._opener),
        )

    def _now(self) -> float:
        """A clock that was put back meanwhile makes nothing come before it was asked for."""
        return max(time.time(), self._sent_at)
