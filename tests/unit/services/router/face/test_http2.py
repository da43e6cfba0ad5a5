"""A connection of HTTP/2 over a transport that a test fills and empties."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hyperframe.frame import PingFrame, SettingsFrame

from services.router.face.answers import Reply
from services.router.face.arrivals import Arrival
from services.router.face.bodies import BodyRoom
from services.router.face.http2 import Http2Connection
from services.router.face.settings import HttpSettings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()


class TransportTwin(asyncio.Transport):
    """Keeps what is written, and knows whether it is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reading = True
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


@asynccontextmanager
async def silent(arrival: Arrival) -> AsyncIterator[Reply]:
    await asyncio.Event().wait()
    yield Reply(200, "text/plain", b"")


async def test_a_client_that_does_not_read_is_not_read_from() -> None:
    """Or it could have answers to its pings pile up here for ever: as many as its allowance gives back with time."""
    transport = TransportTwin()
    async with asyncio.TaskGroup() as tasks:
        connection = Http2Connection(silent, dict, HttpSettings("", ""), BodyRoom(1), tasks)
        connection.connection_made(transport)
        connection.data_received(PREFACE)
        connection.pause_writing()
        assert not transport.is_reading()
        connection.resume_writing()
        assert transport.is_reading()
        connection.data_received(PingFrame(0, b"12345678").serialize())
        assert transport.written.endswith(PingFrame(0, b"12345678", flags=["ACK"]).serialize())
        connection.connection_lost(None)
    assert connection.over.is_set()
