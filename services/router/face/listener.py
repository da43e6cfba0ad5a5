"""It is responsible for the life of HTTP listeners: clients' with TLS, the operator's without."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.https.connections import H2, Connection, Connections
from libs.https.listening import listening
from services.router.face.answers import Answer, Headers
from services.router.face.bodies import BodyRoom
from services.router.face.http1 import speaking_http1
from services.router.face.http2 import Http2Connection
from services.router.face.settings import HttpSettings
from services.router.metrics import ConnectionMetrics

_OPERATORS_SECONDS = 1.0
"""How long those who watch a router that stops may still read."""


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
    http1 = speaking_http1(answer, headers, settings, room)
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
        async with listening(settings.listen, connections, drain_seconds) as port:
            yield port


@asynccontextmanager
async def plain_http(address: str, answer: Answer) -> AsyncIterator[int]:
    """Serve HTTP without TLS while the body runs, to those whom the operator lets reach the address. Yields the port;
    raises `PortTaken`, `AddressMalformed`.
    """
    settings = HttpSettings(address, "")
    http1 = speaking_http1(answer, dict, settings, BodyRoom(settings.max_bodies_bytes, settings.max_body_bytes))
    connections = Connections(
        lambda agreed: http1(),
        None,
        limit=settings.max_connections,
        handshake_seconds=settings.idle_seconds,
        metrics=ConnectionMetrics(),  # Those who watch are no clients.
    )
    async with listening(address, connections, _OPERATORS_SECONDS) as port:
        yield port
