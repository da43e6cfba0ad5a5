"""It is responsible for listeners that serve one of aiohttp's applications: its routes, on connections that are bounded
as everybody's are.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

from aiohttp import HttpVersion11, web

from libs.errors import MeshError
from libs.https.connections import Connections, Unobserved
from libs.https.heads import require_authority, split_target
from libs.https.http1 import Http1Connection, Http1Server, Request, require_one_reading
from libs.https.listening import listening
from libs.https.unreadable import Unreadable


@dataclass(frozen=True, slots=True)
class ApplicationBounds:
    """Of one listener."""

    max_connections: int = 1000
    """How many connections may be open at once. For the next one the oldest gives way on which no request runs; where
    there is none, it is closed as it comes."""
    max_head_bytes: int = 16 << 10
    max_connection_requests: int = 1000
    idle_seconds: float = 30.0
    """How long a connection may take to its TLS session, then to a whole request head, the first or the next one."""
    stall_seconds: float = 30.0
    drain_seconds: float = 2.0
    """How long what runs may go on when the listener ends."""


_BOUNDS = ApplicationBounds()


@asynccontextmanager
async def serving_application(
    address: str, application: web.Application, context: ssl.SSLContext, bounds: ApplicationBounds = _BOUNDS
) -> AsyncIterator[int]:
    """Serve HTTPS while the body runs. Yields the port; raises `PortTaken`, `AddressMalformed`.

    What is no request is refused in plain text, before any of the application sees it.
    """
    application.freeze()
    http1 = Http1Server(
        partial(_respond, application),
        _refusal,
        bounds,
        request=_Routed,
        # What has begun may go on without being asked for, on a thread: it counts until it has ended.
        cancelling=False,
    )
    connections = Connections(
        lambda agreed: http1(),
        context,
        limit=bounds.max_connections,
        handshake_seconds=bounds.idle_seconds,
        metrics=Unobserved(),
    )
    async with listening(address, connections, bounds.drain_seconds) as port:
        yield port


class _Routed(Request, web.Request):
    """What an application finds its route for."""


async def _respond(application: web.Application, request: web.BaseRequest) -> web.StreamResponse:
    connection = cast(Http1Connection, request.protocol)
    connection.begin()
    try:
        _require_readable(request, connection.settings.max_head_bytes)
        response = await _answer(application, cast(web.Request, request))
        if connection.ends:
            response.force_close()
        # A client that takes nothing of it must not hold it for as long as it likes.
        async with asyncio.timeout(connection.settings.stall_seconds):
            await response.prepare(request)
            await response.write_eof()
        return response
    finally:
        connection.end()


async def _answer(application: web.Application, request: web.Request) -> web.StreamResponse:
    try:
        return await application._handle(request)
    except web.HTTPException as refusal:
        return web.Response(status=refusal.status, body=refusal.text, headers=refusal.headers)


def _require_readable(request: web.BaseRequest, limit: int) -> None:
    """Refuse what aiohttp lets by, and somebody on the way may have read otherwise. Raises `Unreadable`."""
    require_one_reading(request, limit)
    named = request.headers.getall("Host", [])
    split_target(request.raw_path, require_authority(named) if named or request.version >= HttpVersion11 else "")


def _refusal(why: MeshError | None, path: str) -> web.Response:
    if why is None:
        return web.Response(status=500, text="INTERNAL\n")
    return web.Response(status=why.status if isinstance(why, Unreadable) else 400, text=f"{why.reason}\n")
