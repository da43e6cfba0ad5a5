"""It is responsible for HTTP/1: between aiohttp's requests and responses and the plain values that answers are made of.

What cannot be read as a request gets the same JSON and headers as every other refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import cast

from aiohttp import HttpVersion11, web

from libs.aci.endpoints import protocol_at
from libs.errors import MeshError
from libs.https import unreadable
from libs.https.heads import host_of, require_authority, split_target
from libs.https.http1 import Http1Connection, Http1Server, require_one_reading
from libs.rpc.tls import served_hosts
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
from services.router.face.settings import HttpSettings

_PIECE_BYTES = 128 << 10
"""Over the 64 KiB from which on aiohttp waits until there is room."""

_TOLD: Mapping[type[MeshError], Callable[[str], RouterError]] = {
    unreadable.Unreadable: InvalidRequest,
    unreadable.HeadTooLarge: HeadTooLarge,
    unreadable.TargetTooLong: TargetTooLong,
    unreadable.VersionNotSupported: VersionNotSupported,
}


def speaking_http1(answer: Answer, headers: Headers, settings: HttpSettings, room: BodyRoom) -> Http1Server:
    """Return what serves HTTP/1. `headers` go on answers to what is no request; `answer` puts its own on all others."""
    return Http1Server(
        partial(_respond, answer, room), partial(_refusal, headers), settings, told=RouterError, knowing=True
    )


def _refusal(headers: Headers, why: MeshError | None, path: str) -> web.Response:
    if isinstance(why, RouterError):
        error = why
    else:
        error = InternalError("internal error") if why is None else _TOLD[type(why)](str(why))
    status, body = error.told(protocol_at(path))
    return web.Response(
        status=status, body=body, content_type="application/json", headers={**error.headers, **headers()}
    )


async def _respond(answer: Answer, room: BodyRoom, request: web.BaseRequest) -> web.StreamResponse:
    connection = cast(Http1Connection, request.protocol)
    connection.begin()
    try:
        with room.share() as share:
            async with answer(_arrival(request, connection, share)) as reply:
                length = reply.known_length
                kind = web.StreamResponse if length is None else _WholeResponse
                response = kind(status=reply.status, headers={**reply.headers, "Content-Type": reply.content_type})
                if connection.ends:
                    response.force_close()
                if length is not None:
                    response.content_length = length
                body = _whole(reply.body) if isinstance(reply.body, bytes) else reply.body
                await _send(request, connection, body, response)
                return response
    finally:
        connection.end()


class _WholeResponse(web.StreamResponse):
    """One whose body is there: its head goes out with it, in one piece."""

    _send_headers_immediately = False


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


async def _send(
    request: web.BaseRequest,
    connection: Http1Connection,
    body: AsyncGenerator[bytes, None],
    response: web.StreamResponse,
) -> None:
    """Write a body as it comes. What stops before its end, or before its length, does not look like one."""
    whole, left = False, response.content_length
    try:
        async with aclosing(body):
            await response.prepare(request)
            if request.method != "HEAD":
                async for data in body:
                    left = None if left is None else left - len(data)
                    await _write(connection, response, data)
        async with asyncio.timeout(connection.settings.stall_seconds):
            await response.write_eof()
        whole = request.method == "HEAD" or left in (None, 0)
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
    require_one_reading(request, connection.settings.max_head_bytes)
    given = request.headers.getall("Host", [])
    named = bool(given) or request.version >= HttpVersion11
    authority = require_authority(given) if named else ""
    path, query = split_target(request.raw_path, authority)
    return Arrival(
        method=request.method,
        path=path,
        query=Fields(query),
        headers=Fields((name.lower(), value) for name, value in request.headers.items()),
        read=partial(_read, request, share),
        gone=lambda: connection.lost,
        stalled=lambda: connection.stalled,
        connection=connection,
        keep=connection.keep,
        host=host_of(authority),
        served=served_hosts(request.transport),
    )


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
