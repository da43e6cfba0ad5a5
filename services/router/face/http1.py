"""It is responsible for HTTP/1: between aiohttp's requests and responses and the plain values that answers are made of.

aiohttp answers unreadable requests by itself, in plain text, quoting them, with a stack trace in the log. Here they get
the same JSON and headers as every other refusal, and one line. What it lets by and should not is refused before anybody
sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import structlog
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

from libs.aci.endpoints import protocol_at
from libs.aci.sse import Protocol
from services.router.errors import (
    HeadTooLarge,
    InternalError,
    InvalidRequest,
    RequestTooLarge,
    RouterError,
    TargetTooLong,
    VersionNotSupported,
)
from services.router.face.answers import Answer, Headers
from services.router.face.arrivals import Arrival, Fields
from services.router.face.bodies import BodyRoom, Share
from services.router.face.heads import host_of, require_authority, split_target
from services.router.face.settings import HttpSettings

_LINGERING_SECONDS = 1.0
"""For how long the rest of a refused body is read, so that the client can read why before the connection closes."""
_PIECE_BYTES = 128 << 10
"""Over the 64 KiB from which on aiohttp waits until there is room."""
_TARGET_BYTES = 256
"""How much of the beginning of a head tells whose clients ask there."""
_BUG_STATUS = 500
_LATE_STATUS = 504
"""What aiohttp makes of a `TimeoutError`."""
_TOO_MANY = "Too many headers received"
"""What aiohttp says of more fields than it reads, 128."""

log = structlog.get_logger()


class Http1Server(web.Server):
    """Serves HTTP/1. `headers` go on answers to what is no request; `answer` puts its own on all others."""

    def __init__(self, answer: Answer, headers: Headers, settings: HttpSettings, room: BodyRoom) -> None:
        super().__init__(
            partial(_respond, answer, room),
            request_factory=self._request,
            # A client that leaves cancels its handler: whatever it waits for must stop at once.
            handler_cancellation=True,
            access_log=None,
            # A receipt names what came over the wire, so nothing may unpack it on the way to who hashes it.
            auto_decompress=False,
            lingering_time=_LINGERING_SECONDS,
            keepalive_timeout=settings.idle_seconds,
            max_line_size=settings.max_head_bytes // 2,
            max_field_size=settings.max_head_bytes,
        )
        self._headers = headers
        self._settings = settings

    def __call__(self) -> Http1Connection:
        return Http1Connection(self, self._headers, self._settings, loop=self._loop, **self._kwargs)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        spoken = message.version in (HttpVersion10, HttpVersion11)
        if not spoken:
            # Or it would be answered in whatever version it claims.
            message = message._replace(version=HttpVersion11)
        request = _Request(message, payload, protocol, writer, task, self._loop)
        request.spoken = spoken
        return request


class _Request(web.BaseRequest):
    spoken = True
    """Whether it is of a version that is spoken here."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        # Without a name of ours aiohttp gives its own and its version.
        response.headers.popall("Server", None)


class Http1Connection(RequestHandler):
    """One connection (`connections.Connection`)."""

    __slots__ = (
        "_beginning",
        "_body",
        "_closed",
        "_draining",
        "_head_bytes",
        "_headers",
        "_refused",
        "_running",
        "_served",
        "_stopped",
        "lost",
        "over",
        "settings",
        "stalled",
    )

    def __init__(self, server: web.Server, headers: Headers, settings: HttpSettings, **options: Any) -> None:
        super().__init__(server, **options)
        self._headers = headers
        self.settings = settings
        self.over = asyncio.Event()
        self.lost = False
        """Whether the other side is gone."""
        self.stalled = False
        """Whether the other side is there and does not read."""
        self._body: Any = EMPTY_PAYLOAD
        """Of the request that was read last."""
        self._beginning = b""
        """Of the head that came last: aiohttp does not say for which path it was what it cannot read."""
        self._head_bytes = 0
        """How much of the next head has come."""
        self._refused = False
        self._closed = False
        """Whether all that was written has gone out, or never will. aiohttp lets go of its transport before."""
        self._draining = False
        self._stopped = False
        self._running = 0
        self._served = 0

    def connection_lost(self, exc: BaseException | None) -> None:
        self._closed = True
        self.lost = not self._stopped
        super().connection_lost(exc)
        self._settle()

    def data_received(self, data: bytes) -> None:
        """Read on. aiohttp bounds each field and their number, which together is too much for a head."""
        if self._refused:
            return
        before, in_body = self._request_count, not self._body.is_eof()
        if not in_body:
            begun = self._beginning if self._head_bytes else b""
            self._beginning = begun + data[: _TARGET_BYTES - len(begun)]
        super().data_received(data)
        if in_body and self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._break_body()
        elif self._request_count != before and self._messages:
            self._body, self._head_bytes = self._messages[-1][1], 0
        elif not in_body:
            self._head_bytes += len(data)
            if self._head_bytes > self.settings.max_head_bytes:
                self._refuse_head()

    def drain(self) -> None:
        self._draining = True
        if self._running or self._messages:
            self.close()
        else:
            self.force_close()

    def abort(self) -> None:
        self._stopped = True
        if self.transport is not None:
            self.transport.abort()

    def begin(self) -> None:
        """Take note of a request that runs."""
        self._running += 1
        self._served += 1

    def end(self) -> None:
        """Take note of its end."""
        self._running -= 1
        self._settle()

    @property
    def ends(self) -> bool:
        """Whether the request that runs is the last one."""
        return self._draining or self._refused or self._served >= self.settings.max_connection_requests

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = _BUG_STATUS,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request. Raises `ConnectionError` where an answer has begun already, or nobody reads it."""
        if status == _LATE_STATUS or isinstance(exc, ConnectionResetError):
            log.info("the client left, or does not read")  # Closing the body has told who made it.
            raise ConnectionError("nobody reads this answer")
        if status == _BUG_STATUS and not isinstance(exc, RouterError):
            log.error("bug in the listener", exc_info=exc)
            error: RouterError = InternalError("internal error")
        else:
            error = self._unreadable(exc)
            log.info("unreadable request", status=error.status, kind=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        told, body = error.told(self._protocol(request))
        response = web.Response(
            status=told,
            body=body,
            content_type="application/json",
            headers={**error.headers, **self._headers()},
        )
        response.force_close()
        return response

    def _unreadable(self, exc: BaseException | None) -> RouterError:
        """Return what a client learns of a request that cannot be read."""
        if isinstance(exc, RouterError):
            return exc
        limit = self.settings.max_head_bytes
        if isinstance(exc, LineTooLong) and exc.args[1] == limit // 2:
            return TargetTooLong(f"the request's target is over {limit // 2} bytes")
        if isinstance(exc, LineTooLong) or (isinstance(exc, BadHttpMessage) and _TOO_MANY in exc.message):
            return HeadTooLarge(f"the request's head has too many fields, or is over {limit} bytes")
        return InvalidRequest("this cannot be read as an HTTP request")

    def _protocol(self, request: web.BaseRequest) -> Protocol:
        """Return whose clients ask for the path, as far as it is known."""
        if request._message is not ERROR:
            target = request.raw_path
        else:
            line = self._beginning.lstrip(b"\r\n").partition(b"\n")[0].decode("latin-1").split(" ")
            target = line[1] if len(line) > 1 else ""
        return protocol_at(target.partition("?")[0])

    def _break_body(self) -> None:
        """Tell whoever reads the body that the rest is none: aiohttp has them wait for it, and would answer twice."""
        self._refused = True
        self._messages.pop()
        self._body.set_exception(web.RequestPayloadError("the rest of the body cannot be read"))
        self._body.feed_eof()

    def _refuse_head(self) -> None:
        self._refused = True
        error = HeadTooLarge(f"the request's head is over {self.settings.max_head_bytes} bytes")
        self._messages.append((_ErrInfo(error.status, error, str(error)), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _settle(self) -> None:
        if self._closed and not self._running:
            self.over.set()


async def _respond(answer: Answer, room: BodyRoom, request: web.BaseRequest) -> web.StreamResponse:
    connection = cast(Http1Connection, request.protocol)
    connection.begin()
    try:
        with room.share() as share:
            async with answer(_arrival(request, connection, share)) as reply:
                response = web.StreamResponse(
                    status=reply.status, headers={**reply.headers, "Content-Type": reply.content_type}
                )
                if connection.ends:
                    response.force_close()
                if isinstance(reply.body, bytes):
                    response.content_length = len(reply.body)
                    await _send(request, connection, _whole(reply.body), response)
                else:
                    await _send(request, connection, reply.body, response)
                return response
    finally:
        connection.end()


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _send(
    request: web.BaseRequest,
    connection: Http1Connection,
    body: AsyncGenerator[bytes, None],
    response: web.StreamResponse,
) -> None:
    """Write a body as it comes. What stops before its end does not look like one."""
    whole = False
    try:
        async with aclosing(body):
            await response.prepare(request)
            if request.method != "HEAD":
                async for data in body:
                    await _write(connection, response, data)
        async with asyncio.timeout(connection.settings.stall_seconds):
            await response.write_eof()
        whole = True
    finally:
        if not whole and request.transport is not None:
            # Nor may another answer follow on this connection.
            request.transport.abort()


async def _write(connection: Http1Connection, response: web.StreamResponse, data: bytes) -> None:
    """Return once nearly all is with the operating system: one long write may lie whole in this process's TLS layer.

    Raises `TimeoutError` where the client takes too little of it in time.
    """
    for start in range(0, len(data), _PIECE_BYTES):
        try:
            async with asyncio.timeout(connection.settings.stall_seconds):
                await response.write(data[start : start + _PIECE_BYTES])
        except TimeoutError:
            connection.stalled = True
            raise


def _arrival(request: web.BaseRequest, connection: Http1Connection, share: Share) -> Arrival:
    """Raises `RouterError` for what aiohttp takes for a request and nobody should."""
    _require_one_reading(request, connection.settings.max_head_bytes)
    given = request.headers.getall("Host", [])
    named = bool(given) or request.version >= HttpVersion11
    authority = require_authority(given) if named else ""
    path, query = split_target(request.raw_path, authority)
    return Arrival(
        method=request.method,
        path=path,
        query=query,
        headers=Fields((name.lower(), value) for name, value in request.headers.items()),
        read=partial(_read, request, share),
        gone=lambda: connection.lost,
        stalled=lambda: connection.stalled,
        host=host_of(authority),
    )


def _require_one_reading(request: web.BaseRequest, limit: int) -> None:
    """Raises `VersionNotSupported`, `InvalidRequest` or `HeadTooLarge`."""
    if not cast(_Request, request).spoken:
        raise VersionNotSupported("HTTP/1.0, HTTP/1.1 and, agreed upon in TLS, HTTP/2 are spoken here")
    codings = request.headers.getall("Transfer-Encoding", [])
    if codings and (request.version < HttpVersion11 or [coding.strip().lower() for coding in codings] != ["chunked"]):
        # RFC 9112, section 6.1: HTTP/1.0 has none, and of more than one somebody on the way may have read another.
        raise InvalidRequest("the only transfer coding is chunked, once, of HTTP/1.1")
    lines = (len(name) + len(value) + len(": \r\n") for name, value in request._message.raw_headers)
    if len(request.raw_path) + sum(lines) > limit:
        raise HeadTooLarge(f"the request's head is over {limit} bytes")


async def _read(request: web.BaseRequest, share: Share, limit: int, tenant_id: str) -> bytes:
    share.assign(tenant_id)
    too_large = RequestTooLarge(f"the request body is over {limit} bytes")
    if (request.content_length or 0) > limit:
        raise too_large
    if "Expect" in request.headers and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # That was no answer yet.
        request.writer.output_size = 0
    body = bytearray()
    try:
        while chunk := await request.content.readany():
            if len(body) + len(chunk) > limit:
                raise too_large
            share.take(len(chunk))
            body += chunk
    except web.RequestPayloadError as error:
        raise InvalidRequest("the request body cannot be read to its end") from error
    return bytes(body)
