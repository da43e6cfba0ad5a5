"""Responsible for asking a gateway as cheaply as can be: HTTP/1.1 on kept-alive connections, without a client library.

Load, gateway and engine share a machine, so what the load costs is missing to the others.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.bench.gateways.engine import MODEL
from tests.bench.samples import Action

_SECONDS = 60.0
PATH = "/v1/chat/completions"
Heard = Callable[[bytes, bytes], None]
"""Is given the head of an answer, in lower case, and its whole body."""


def prompt(*, stream: bool) -> bytes:
    """Return the body that everybody is asked with."""
    question = {"role": "user", "content": "Why is the sky blue? Answer in one sentence."}
    return json.dumps({"model": MODEL, "messages": [question], "stream": stream}, separators=(",", ":")).encode()


class GatewayFailed(RuntimeError):
    """A gateway did not answer 200, or not whole."""


class NotHeard(RuntimeError):
    """A connection ended before the first byte of an answer."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where to ask, and with what."""

    name: str
    url: str
    tls: ssl.SSLContext | None = None
    headers: Mapping[str, str] | None = None

    def request(self, body: bytes) -> bytes:
        """Return the bytes of a prompt request."""
        lines = {
            "Host": urlsplit(self.url).netloc,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        told = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **(self.headers or {})}.items())
        return f"POST {PATH} HTTP/1.1\r\n{told}\r\n".encode() + body


class _Asking:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard | None) -> None:
        self._reader = reader
        self._writer = writer
        self._heard = heard
        self.ends = False
        """Whether the gateway said that this was the last answer here."""

    async def ask(self, request: bytes) -> float:
        """Send a request and read the answer; return the seconds to the first byte of its body."""
        began = time.perf_counter()
        self._writer.write(request)
        head = (await self._head()).lower()
        if not head.startswith(b"http/1.1 200"):
            raise GatewayFailed(f"{head!r} {await self._reader.read(500)!r}")
        self.ends = b"\r\nconnection: close\r\n" in head
        if b"transfer-encoding: chunked" in head:
            first, body = await self._chunks()
        else:
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            body = await self._reader.readexactly(length)
            first = time.perf_counter()
        if self._heard is not None:
            self._heard(head, body)
        return first - began

    async def _head(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            raise NotHeard from error
        except ConnectionError as error:
            raise NotHeard from error

    async def _chunks(self) -> tuple[float, bytes]:
        first, chunks = 0.0, []
        while (size := int(await self._reader.readuntil(b"\r\n"), 16)) > 0:
            chunks.append((await self._reader.readexactly(size + 2))[:size])
            first = first or time.perf_counter()
        await self._reader.readexactly(2)
        return first, b"".join(chunks)

    def close(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def asking(
    gateway: Gateway,
    body: bytes,
    heard: Heard | None = None,
    connections: int | None = None,
    asked_again: Callable[[], None] | None = None,
) -> AsyncIterator[Action]:
    """Give what asks once. As many connections are opened as are asked at once, and kept; of a request beyond
    `connections` the client waits for one. Of a kept one that ends unheard it asks again on the next, and says so.
    """
    where = urlsplit(gateway.url)
    request = gateway.request(body)
    idle: list[_Asking] = []
    opened: set[_Asking] = set()
    free: AbstractAsyncContextManager[None] = nullcontext() if connections is None else asyncio.Semaphore(connections)

    async def ask() -> float:
        async with free, asyncio.timeout(_SECONDS):
            while idle:
                try:
                    return await ask_by(idle.pop())
                except NotHeard:  # It was closed because nobody used it; a client cannot tell.
                    if asked_again is not None:
                        asked_again()
            connection = _Asking(*await asyncio.open_connection(where.hostname, where.port, ssl=gateway.tls), heard)
            opened.add(connection)
            return await ask_by(connection)

    async def ask_by(connection: _Asking) -> float:
        is_kept = False
        try:
            first = await connection.ask(request)
            is_kept = not connection.ends
        finally:
            if is_kept:
                idle.append(connection)
            else:
                connection.close()
                opened.discard(connection)
        return first

    try:
        yield ask
    finally:
        for connection in opened:
            connection.close()
