"""It is responsible for HTTP/1: between aiohttp's requests and responses and the plain values that answers are made of.

aiohttp answers unreadable requests by itself, in plain text, quoting them, with a stack trace in the log. Here they get
the same JSON and headers as every other refusal, and one line.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import structlog
from aiohttp import HttpVersion11, web
from aiohttp.web_protocol import RequestHandler

from services.router.errors import InternalError, InvalidRequest, RequestTooLarge
from services.router.face.answers import Answer, Headers
from services.router.face.arrivals import Arrival, Fields

_LINGERING_SECONDS = 1.0
"""For how long the rest of a refused body is read, so that the client can read why before the connection closes."""
_PIECE_BYTES = 128 << 10
"""Over the 64 KiB from which on aiohttp waits until there is room."""
_BUG_STATUS = 500
_LATE_STATUS = 504
"""What aiohttp makes of a `TimeoutError`."""

log = structlog.get_logger()


class Http1Server(web.Server):
    """Serves HTTP/1. `headers` go on answers to what is no request; `answer` puts its own on all others."""

    def __init__(self, answer: Answer, headers: Headers, idle_seconds: float) -> None:
        super().__init__(
            partial(_respond, answer),
            request_factory=self._request,
            # A client that leaves cancels its handler: whatever it waits for must stop at once.
            handler_cancellation=True,
            access_log=None,
            # A receipt names what came over the wire, so nothing may unpack it on the way to who hashes it.
            auto_decompress=False,
            lingering_time=_LINGERING_SECONDS,
            keepalive_timeout=idle_seconds,
        )
        self._headers = headers

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._headers, loop=self._loop, **self._kwargs)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return _Request(message, payload, protocol, writer, task, self._loop)


class _Request(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        # Without a name of ours aiohttp gives its own and its version.
        response.headers.popall("Server", None)


class _Connection(RequestHandler):
    __slots__ = ("_headers", "lost")

    def __init__(self, server: web.Server, headers: Headers, **options: Any) -> None:
        super().__init__(server, **options)
        self._headers = headers
        self.lost = False
        """Whether the other side is gone."""

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost = True
        super().connection_lost(exc)

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
        if status == _BUG_STATUS:
            log.error("bug in the listener", exc_info=exc)
            error = InternalError("internal error").body
        else:
            log.info("unreadable request", status=status, kind=type(exc).__name__)
            error = InvalidRequest("this cannot be read as an HTTP request").body
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        response = web.Response(status=status, body=error, content_type="application/json", headers=self._headers())
        response.force_close()
        return response


async def _respond(answer: Answer, request: web.BaseRequest) -> web.StreamResponse:
    async with answer(_arrival(request)) as reply:
        headers = {**reply.headers, "Content-Type": reply.content_type}
        if isinstance(reply.body, bytes):
            return web.Response(status=reply.status, body=reply.body, headers=headers)
        response = web.StreamResponse(status=reply.status, headers=headers)
        await _send(request, reply.body, response)
        return response


async def _send(request: web.BaseRequest, body: AsyncGenerator[bytes, None], response: web.StreamResponse) -> None:
    """Write a body as it comes. What stops before its end does not look like one."""
    whole = False
    try:
        async with aclosing(body):
            await response.prepare(request)
            async for data in body:
                await _write(response, data)
        await response.write_eof()
        whole = True
    finally:
        if not whole and request.transport is not None:
            # Nor may another answer follow on this connection.
            request.transport.abort()


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Return once nearly all is with the operating system: one long write may lie whole in this process's TLS layer."""
    for start in range(0, len(data), _PIECE_BYTES):
        await response.write(data[start : start + _PIECE_BYTES])


def _arrival(request: web.BaseRequest) -> Arrival:
    connection = request.protocol
    return Arrival(
        method=request.method,
        path=request.rel_url.raw_path,
        query=Fields(request.rel_url.query.items()),
        headers=Fields((name.lower(), value) for name, value in request.headers.items()),
        read=partial(_read, request),
        gone=lambda: isinstance(connection, _Connection) and connection.lost,
    )


async def _read(request: web.BaseRequest, limit: int) -> bytes:
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
            body += chunk
            if len(body) > limit:
                raise too_large
    except web.RequestPayloadError as error:
        raise InvalidRequest("the request body cannot be read to its end") from error
    return bytes(body)
