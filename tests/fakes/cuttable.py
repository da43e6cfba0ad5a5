"""A way between two processes that can be cut: bytes pass through, or nothing does and new connections are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from libs.rpc.address import parse_address

_CHUNK = 65_536


class Way:
    """To one address, from one port of this machine."""

    def __init__(self, target: str) -> None:
        self._target = parse_address(target)
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut = False
        self.address = ""

    def cut(self) -> None:
        """End every connection and let no other come about."""
        self._cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        self._cut = False

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection both ways, until either side ends it."""
        self._writers.add(writer)
        try:
            if self._cut:
                return
            with suppress(OSError):
                to, beyond = await asyncio.open_connection(self._target.host, self._target.port)
                self._writers.add(beyond)
                try:
                    await asyncio.gather(_pump(reader, beyond), _pump(to, writer))
                finally:
                    self._writers.discard(beyond)
                    beyond.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


@asynccontextmanager
async def way_to(target: str) -> AsyncIterator[Way]:
    """A way to an address while the body runs."""
    way = Way(target)
    server = await asyncio.start_server(way.carry, "127.0.0.1", 0)
    way.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield way
    finally:
        server.close()
        way.cut()
        await server.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, until there is no more: then nothing goes the other way either."""
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    finally:
        writer.transport.abort()
