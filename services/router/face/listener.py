"""It is responsible for the HTTPS listener's life, and for answers to what cannot even be read as a request.

aiohttp answers unreadable requests by itself, in plain text, quoting them, with a stack trace in the log. Here they get
the same JSON and headers as every other refusal, and one line.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from libs.errors import Code, MeshError
from libs.rpc.address import parse_address
from libs.rpc.tls import load_server_context
from services.router.errors import InternalError, InvalidRequest
from services.router.workload.workload import OutwardCertificate

_SHUTDOWN_SECONDS = 10.0
_LINGERING_SECONDS = 1.0
"""For how long the rest of a refused body is read, so that the client can read why before the connection closes."""
_IDLE_SECONDS = 30.0
"""How long a connection may take to a whole request head, the first one or the next."""
_BUG_STATUS = 500

log = structlog.get_logger()


class PortTaken(MeshError):
    """The HTTPS listener's address cannot be listened on."""

    code = Code.UNAVAILABLE
    reason = "PORT_TAKEN"


@asynccontextmanager
async def https(
    address: str,
    application: web.Application,
    headers: Mapping[str, str],
    outward: OutwardCertificate,
    *,
    idle_seconds: float = _IDLE_SECONDS,
) -> AsyncIterator[int]:
    """Serve HTTPS while the body runs, then let running requests end. Yields the port; raises `PortTaken`,
    `AddressMalformed`.

    `headers` go on answers to what is no request; on all others the application puts its own.
    """
    parsed = parse_address(address)
    context = load_server_context(key_pem=outward.key_pem, certificate_pem=outward.certificate_pem)
    runner = _Runner(application, headers, idle_seconds)
    await runner.setup()
    try:
        try:
            listening = socket.create_server((parsed.host, parsed.port), family=parsed.family)
        except OSError as error:
            raise PortTaken(f"cannot listen on {address}: {error.strerror}") from error
        await web.SockSite(runner, listening, ssl_context=context).start()
        yield listening.getsockname()[1]
    finally:
        await runner.cleanup()


class _Runner(web.AppRunner):
    """Serves with `_Connection` instead of aiohttp's own."""

    __slots__ = ("_headers", "_idle_seconds")

    def __init__(self, application: web.Application, headers: Mapping[str, str], idle_seconds: float) -> None:
        # A client that leaves cancels its handler: whatever it waits for must stop at once.
        super().__init__(application, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS, handler_cancellation=True)
        self._headers = dict(headers)
        self._idle_seconds = idle_seconds

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            server.request_handler,
            request_factory=server.request_factory,
            handler_cancellation=server.handler_cancellation,
            headers=self._headers,
            access_log=None,
            # A receipt names what came over the wire, so nothing may unpack it on the way to who hashes it.
            auto_decompress=False,
            lingering_time=_LINGERING_SECONDS,
            keepalive_timeout=self._idle_seconds,
        )


class _Server(web.Server):
    def __init__(self, *arguments: Any, headers: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._headers = headers

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._headers, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    __slots__ = ("_headers",)

    def __init__(self, server: web.Server, headers: Mapping[str, str], **options: Any) -> None:
        super().__init__(server, **options)
        self._headers = headers

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = _BUG_STATUS,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what the application never saw, or raise `ConnectionError` when an answer has begun already."""
        if status == _BUG_STATUS:
            log.error("bug in the listener", exc_info=exc)
            error = InternalError("internal error").body
        else:
            log.info("unreadable request", status=status, kind=type(exc).__name__)
            error = InvalidRequest("this cannot be read as an HTTP request").body
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        # Without a name of ours aiohttp would give its own and its version.
        headers = {**self._headers, "Server": "teemesh"}
        response = web.Response(status=status, body=error, content_type="application/json", headers=headers)
        response.force_close()
        return response
