"""It is responsible for the life of HTTP listeners: clients' with TLS, the operator's without."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.errors import Code, MeshError
from libs.rpc.address import parse_address
from services.router.face.answers import Answer, Headers
from services.router.face.bodies import BodyRoom
from services.router.face.connections import H2, Connection, Connections
from services.router.face.http1 import Http1Server
from services.router.face.http2 import Http2Connection
from services.router.face.settings import HttpSettings
from services.router.metrics import ConnectionMetrics

_BACKLOG = 1024
_OPERATORS_SECONDS = 1.0
"""How long those who watch a router that stops may still read."""


class PortTaken(MeshError):
    """A listener's address cannot be listened on."""

    code = Code.UNAVAILABLE
    reason = "PORT_TAKEN"


@asynccontextmanager
async def https(
    settings: HttpSettings,
    answer: Answer,
    headers: Headers,
    context: ssl.SSLContext,
    *,
    room: BodyRoom,
    metrics: ConnectionMetrics,
    drain_seconds: float,
) -> AsyncIterator[int]:
    """Serve HTTPS while the body runs, then let running requests end, for `drain_seconds` at most. Yields the port;
    raises `PortTaken`, `AddressMalformed`.

    `context` has the certificates that clients see, and offers `PROTOCOLS`; what changes in it holds for the
    connections that come then. `headers` go on answers to what is no request; `answer` puts its own on all others.
    """
    http1 = Http1Server(answer, headers, settings, room)
    async with asyncio.TaskGroup() as streams:

        def speak(agreed: str) -> Connection:
            return Http2Connection(answer, headers, settings, room, streams) if agreed == H2 else http1()

        connections = Connections(
            speak,
            context,
            limit=settings.max_connections,
            handshake_seconds=settings.idle_seconds,
            metrics=metrics,
        )
        async with _listening(settings.listen, connections, drain_seconds) as port:
            yield port


@asynccontextmanager
async def plain_http(address: str, answer: Answer) -> AsyncIterator[int]:
    """Serve HTTP without TLS while the body runs, to those whom the operator lets reach the address. Yields the port;
    raises `PortTaken`, `AddressMalformed`.
    """
    settings = HttpSettings(address, "")
    http1 = Http1Server(answer, dict, settings, BodyRoom(settings.max_bodies_bytes, settings.max_body_bytes))
    connections = Connections(
        lambda agreed: http1(),
        None,
        limit=settings.max_connections,
        handshake_seconds=settings.idle_seconds,
        metrics=ConnectionMetrics(),  # Those who watch are no clients.
    )
    async with _listening(address, connections, _OPERATORS_SECONDS) as port:
        yield port


@asynccontextmanager
async def _listening(address: str, connections: Connections, drain_seconds: float) -> AsyncIterator[int]:
    parsed = parse_address(address)
    try:
        listening = socket.create_server((parsed.host, parsed.port), family=parsed.family, backlog=_BACKLOG)
    except OSError as error:
        raise PortTaken(f"cannot listen on {address}: {error.strerror}") from error
    listening.setblocking(False)
    async with asyncio.TaskGroup() as tasks:
        connections.open(listening, tasks)
        try:
            yield listening.getsockname()[1]
        finally:
            connections.close(listening)
            listening.close()
            await connections.drain(drain_seconds)
