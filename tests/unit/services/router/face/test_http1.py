"""A connection of HTTP/1 over a socket: what of an answer goes out together, and what does not look like an end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.router.face.answers import Answer, Reply
from services.router.face.arrivals import Arrival
from services.router.face.bodies import BodyRoom
from services.router.face.http1 import speaking_http1
from services.router.face.settings import HttpSettings

HEAD_END = b"\r\n\r\n"


async def asked(answer: Answer, *, requests: int = 1) -> bytes:
    """Everything that comes back for so many requests, sent at once, until the connection ends."""
    server = speaking_http1(answer, dict, HttpSettings("", ""), BodyRoom(1, 1))
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server, "127.0.0.1", 0)
    async with listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * (requests - 1) + last)
        came = await reader.read()
        writer.close()
    return came


def giving(*parts: bytes, length: int | None) -> Answer:
    @asynccontextmanager
    async def answer(arrival: Arrival) -> AsyncIterator[Reply]:
        yield Reply(200, "text/plain", _parts(*parts), {}, length)

    return answer


async def _parts(*parts: bytes) -> AsyncGenerator[bytes, None]:
    for part in parts:
        yield part


async def test_a_body_of_known_length_says_so() -> None:
    head, _, body = (await asked(giving(b"whole", length=5))).partition(HEAD_END)
    assert b"\r\nContent-Length: 5" in head
    assert b"Transfer-Encoding" not in head
    assert body == b"whole"


async def test_one_of_unknown_length_comes_in_chunks() -> None:
    head, _, body = (await asked(giving(b"some", b"more", length=None))).partition(HEAD_END)
    assert b"\r\nTransfer-Encoding: chunked" in head
    assert body == b"4\r\nsome\r\n4\r\nmore\r\n0\r\n\r\n"


async def test_the_head_of_a_body_that_is_not_there_yet_goes_out_at_once() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def waiting() -> AsyncGenerator[bytes, None]:
        began.set()
        await go_on.wait()
        yield b"late"

    @asynccontextmanager
    async def answer(arrival: Arrival) -> AsyncIterator[Reply]:
        yield Reply(200, "text/plain", waiting())

    server = speaking_http1(answer, dict, HttpSettings("", ""), BodyRoom(1, 1))
    async with await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0) as listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        with contextlib.closing(writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert (await reader.readuntil(HEAD_END)).startswith(b"HTTP/1.1 200")
            assert began.is_set()
            go_on.set()
            assert b"late" in await reader.read()


@pytest.mark.parametrize("requests", [1, 2])
async def test_a_body_shorter_than_its_length_ends_the_connection(requests: int) -> None:
    """Or its client would take the next answer for the rest of it."""
    with contextlib.suppress(ConnectionResetError):
        came = await asked(giving(b"short", length=50), requests=requests)
        assert came.count(b"HTTP/1.1") == 1
