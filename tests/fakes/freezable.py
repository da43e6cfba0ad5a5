"""A way to a server that can go silent and come back, as the connection to a stopped process does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from libs.rpc.address import parse_address


class FreezableWay:
    """Passes bytes on, both ways, but none while it is frozen; those come when it is not any more."""

    def __init__(self) -> None:
        self.target = ""
        """host:port."""
        self._open = asyncio.Event()
        self._open.set()

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
        writer.close()


@asynccontextmanager
async def freezable(target: str) -> AsyncIterator[FreezableWay]:
    """A way to "host:port"."""
    address, way = parse_address(target), FreezableWay()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(address.host, address.port)
        try:
            await asyncio.gather(way.copy(reader, there_writer), way.copy(there_reader, writer))
        finally:
            for each in (writer, there_writer):
                each.transport.abort()

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
        way.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield way
        way.thaw()
