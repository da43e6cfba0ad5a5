"""It is responsible for a request of HTTP/2: between its stream's frames and the plain values of an answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

import structlog
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError

from libs.aci.endpoints import protocol_at
from libs.https.heads import host_of, require_authority, split_target
from libs.https.unreadable import Unreadable
from services.router.errors import ConnectionEnding, InvalidRequest, RequestTooLarge, RouterError
from services.router.face.answers import Answer, Headers, Reply, refusal
from services.router.face.arrivals import Arrival, Fields
from services.router.face.bodies import BodyRoom, Share
from services.router.face.wire import Wire

_NO_CONTENT = 204
_PIECE_BYTES = 128 << 10
"""Of so much at a time a client must take some."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Answering:
    """What every request of a listener is answered with."""

    answer: Answer
    headers: Headers
    """Of answers to what is no request; `answer` puts its own on all others."""
    room: BodyRoom
    stall_seconds: float
    """How long a client may take none of what is written to it."""


class Stream:
    """One request and its answer. One that is `refused` came on a connection that ends."""

    def __init__(
        self,
        wire: Wire,
        answering: Answering,
        stream_id: int,
        headers: Sequence[tuple[bytes, bytes]],
        *,
        refused: bool,
    ) -> None:
        self._wire = wire
        self._answering = answering
        self._id = stream_id
        self._refused = refused
        named = [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in headers]
        self._pseudo = Fields(pair for pair in named if pair[0].startswith(":"))
        self._headers = Fields(pair for pair in named if not pair[0].startswith(":"))
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._ended = False
        self._came = asyncio.Event()
        self.lost = False
        """Whether the client has given the request up."""
        self._stalled = False

    def feed(self, data: bytes, flow_bytes: int) -> None:
        """Take a part of the body, which used up so much of what the client may send."""
        self._chunks.append((data, flow_bytes))
        self._came.set()

    def feed_end(self) -> None:
        self._ended = True
        self._came.set()

    def give_back(self) -> None:
        """Give back what nobody has read of the connection's window, nor will."""
        with suppress(ProtocolError):  # The client has ended the connection.
            while self._chunks:
                self._acknowledge(self._chunks.popleft()[1])

    async def run(self) -> None:
        """Answer. Whatever happens, the stream is closed or reset."""
        code = ErrorCodes.INTERNAL_ERROR
        try:
            with self._answering.room.share() as share:
                async with self._answered(share) as reply:
                    await self._send(reply)
                # What is left of the body is of no interest (RFC 9113, section 8.1).
                code = ErrorCodes.NO_ERROR
        except TimeoutError:
            log.info("the client does not read", thinned=True)
            code = ErrorCodes.CANCEL
        except ProtocolError:
            # The client reset the stream, or ended the connection, while something was being written.
            log.info("the client left", thinned=True)
        except Exception:
            log.exception("bug in the listener")
        finally:
            self._close(code)

    @asynccontextmanager
    async def _answered(self, share: Share) -> AsyncIterator[Reply]:
        try:
            arrival = self._arrival(share)
        except RouterError as error:
            log.info("unreadable request", status=error.status, thinned=True)
            path, _, _ = (self._pseudo.first(":path") or "").partition("?")
            reply = refusal(error, protocol_at(path))
            yield Reply(reply.status, reply.content_type, reply.body, {**reply.headers, **self._answering.headers()})
            return
        async with self._answering.answer(arrival) as reply:
            yield reply

    def _arrival(self, share: Share) -> Arrival:
        """Raises `InvalidRequest`, `ConnectionEnding`."""
        if self._refused:
            raise ConnectionEnding("this connection is about to end; make another one")
        given = {*self._pseudo.all(":authority"), *self._headers.all("host")}
        target = self._pseudo.first(":path")
        if target is None or self._pseudo.first(":scheme") != "https":
            raise InvalidRequest("the request must be for a path, by https")
        try:
            authority = require_authority(tuple(given))
            path, query = split_target(target, authority)
        except Unreadable as error:
            raise InvalidRequest(str(error)) from error

        async def read(limit: int, tenant_id: str) -> bytes:
            share.assign(tenant_id)
            return await self._read(share, limit)

        return Arrival(
            method=self._pseudo.first(":method") or "",
            path=path,
            query=Fields(query),
            headers=self._headers,
            read=read,
            gone=lambda: self.lost or self._wire.lost,
            stalled=lambda: self._stalled,
            connection=self._wire,
            keep=self._wire.keep,
            host=host_of(authority),
            served=self._wire.hosts,
        )

    async def _read(self, share: Share, limit: int) -> bytes:
        too_large = RequestTooLarge(f"the request body is over {limit} bytes")
        announced = self._headers.only("content-length")
        if announced is not None and int(announced) > limit:
            raise too_large
        if self._headers.first("expect") is not None and not self._ended:
            self._wire.h2.send_headers(self._id, [(":status", "100")])
            self._wire.flush()
        body = bytearray()
        while True:
            while self._chunks:
                data, flow_bytes = self._chunks.popleft()
                if len(body) + len(data) > limit:
                    raise too_large
                share.take(len(data))
                body += data
                self._acknowledge(flow_bytes)
            if self._ended:
                return bytes(body)
            self._came.clear()
            await self._came.wait()

    async def _send(self, reply: Reply) -> None:
        """Write a reply as it comes. Raises `TimeoutError` where the client takes nothing of it in time."""
        wire = self._wire
        headers = [(":status", str(reply.status)), ("content-type", reply.content_type)]
        headers.extend((name.lower(), value) for name, value in reply.headers.items())
        length = reply.known_length
        if length is not None and reply.status != _NO_CONTENT:
            headers.append(("content-length", str(length)))
        async with aclosing(_whole(reply.body) if isinstance(reply.body, bytes) else reply.body) as body:
            empty = self._pseudo.first(":method") == "HEAD"
            wire.h2.send_headers(self._id, headers, end_stream=empty)
            if empty or length is None:
                wire.flush()
            if empty:
                return
            async for data in body:
                await self._write(data)
        wire.h2.end_stream(self._id)
        wire.flush()

    async def _write(self, data: bytes) -> None:
        """Return once nearly all is with the operating system. Raises `TimeoutError` where the client takes too little
        of it in time.
        """
        for start in range(0, len(data), _PIECE_BYTES):
            try:
                async with asyncio.timeout(self._answering.stall_seconds):
                    await self._write_piece(memoryview(data)[start : start + _PIECE_BYTES])
            except TimeoutError:
                self._stalled = True
                raise

    async def _write_piece(self, piece: memoryview) -> None:
        wire = self._wire
        while count := await wire.sendable(self._id, len(piece)):
            wire.h2.send_data(self._id, bytes(piece[:count]))
            wire.flush()
            wire.allowance.earn()
            piece = piece[count:]

    def _close(self, code: ErrorCodes) -> None:
        """Reset the stream unless both sides have closed it."""
        wire = self._wire
        if wire.is_closing:
            return
        try:
            if code is not ErrorCodes.NO_ERROR or not self._ended:
                wire.h2.reset_stream(self._id, code)
        except ProtocolError:
            log.debug("the stream is closed already")
        wire.flush()

    def _acknowledge(self, flow_bytes: int) -> None:
        if flow_bytes:
            self._wire.h2.acknowledge_received_data(flow_bytes, self._id)
            self._wire.flush()


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
