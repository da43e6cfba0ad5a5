"""A connection of HTTP/2 over a transport that a test fills and empties."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.errors import RouterError
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
        connection = Http2Connection(silent, dict, HttpSettings("", ""), BodyRoom(1, 1), tasks)
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


async def test_what_was_sent_of_a_request_that_was_given_up_at_once_is_given_back() -> None:
    """All in one piece, so that nothing of the request was ever begun: other streams need the connection's window."""
    transport = TransportTwin()
    async with asyncio.TaskGroup() as tasks:
        connection = Http2Connection(silent, dict, HttpSettings("", ""), BodyRoom(1, 1), tasks)
        connection.connection_made(transport)
        connection.data_received(PREFACE)
        for stream_id in range(1, 21, 2):
            head = HeadersFrame(stream_id, HEAD, flags=["END_HEADERS"]).serialize()
            sent = DataFrame(stream_id, bytes(10_000)).serialize()
            connection.data_received(head + sent + RstStreamFrame(stream_id, ErrorCodes.CANCEL).serialize())
            for _ in range(2):
                await asyncio.sleep(0)
        assert not transport.closing, "the client kept to its window"
        connection.connection_lost(None)


@asynccontextmanager
async def prompt_reply(arrival: Arrival) -> AsyncIterator[Reply]:
    try:
        body = await arrival.read(1000, "tenant")
    except RouterError as error:
        body = error.body
    yield Reply(200, "text/plain", body)


async def speak(pieces: list[bytes]) -> TransportTwin:
    """Let a connection read this. It raises nothing, whatever it is, and is over once it is lost."""
    transport = TransportTwin()
    async with asyncio.TaskGroup() as tasks:
        connection = Http2Connection(prompt_reply, dict, HttpSettings("", ""), BodyRoom(2000, 2000), tasks)
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        connection.connection_lost(None)
    assert connection.over.is_set()
    return transport


def frame_of(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


HEAD = Encoder().encode([(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/")], huffman=False)
FRAMES = st.builds(
    frame_of,
    st.integers(0, 12),
    st.integers(0, 255),
    st.sampled_from([0, 1, 1, 1, 2, 3, 5, (1 << 31) - 1, 1 << 31]),
    st.one_of(st.binary(max_size=40), st.just(HEAD), st.just(HEAD[:5]), st.just(bytes(4)), st.just(bytes(8))),
)


@settings(max_examples=300)
@given(st.lists(st.one_of(FRAMES, st.binary(max_size=30)), max_size=12))
def test_whatever_comes_is_answered_or_ends_the_connection(frames: list[bytes]) -> None:
    asyncio.run(speak([PREFACE, *frames]))


@given(st.binary(max_size=60))
def test_what_is_no_preface_ends_the_connection(data: bytes) -> None:
    transport = asyncio.run(speak([data, data]))
    assert transport.closing or PREFACE.startswith((data + data)[: len(PREFACE)])
