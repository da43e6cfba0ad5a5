"""It is responsible for the life of HTTP listeners: clients' with TLS, the operator's without."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from libs.errors import Code, MeshError
from libs.rpc.address import parse_address
from services.router.face.answers import Answer, Headers
from services.router.face.http1 import Http1Server

_SHUTDOWN_SECONDS = 10.0
_IDLE_SECONDS = 30.0
"""How long a connection may take to a whole request head, the first one or the next."""


class PortTaken(MeshError):
    """A listener's address cannot be listened on."""

    code = Code.UNAVAILABLE
    reason = "PORT_TAKEN"


@asynccontextmanager
async def https(
    address: str,
    answer: Answer,
    headers: Headers,
    context: ssl.SSLContext,
    *,
    idle_seconds: float = _IDLE_SECONDS,
    shutdown_seconds: float = _SHUTDOWN_SECONDS,
) -> AsyncIterator[int]:
    """Serve HTTPS while the body runs, then let running requests end, for twice `shutdown_seconds` at most. Yields the
    port; raises `PortTaken`, `AddressMalformed`.

    `headers` go on answers to what is no request; `answer` puts its own on all others.
    """
    async with _listening(address, Http1Server(answer, headers, idle_seconds), context, shutdown_seconds) as port:
        yield port


@asynccontextmanager
async def plain_http(address: str, answer: Answer) -> AsyncIterator[int]:
    """Serve HTTP without TLS while the body runs, to those whom the operator lets reach the address. Yields the port;
    raises `PortTaken`, `AddressMalformed`.
    """
    async with _listening(address, Http1Server(answer, dict, _IDLE_SECONDS), None, _SHUTDOWN_SECONDS) as port:
        yield port


@asynccontextmanager
async def _listening(
    address: str, server: Http1Server, context: ssl.SSLContext | None, shutdown_seconds: float
) -> AsyncIterator[int]:
    parsed = parse_address(address)
    runner = web.ServerRunner(server, shutdown_timeout=shutdown_seconds)
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
