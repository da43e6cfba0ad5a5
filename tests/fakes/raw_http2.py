"""A client of HTTP/2 that sends the frames that a test says, well made or not, and keeps the ones that come."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD_BYTES = 9
Header = tuple[str, str]


def get(path: str = "/health", *more: Header, authority: str = "localhost") -> list[Header]:
    """The head of a request that is all right but for what `more` adds."""
    return [(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", path), *more]


def post(path: str, key: str, *more: Header) -> list[Header]:
    """The head of a prompt."""
    return [(":method", "POST"), *get(path)[1:], ("authorization", f"Bearer {key}"), *more]


@dataclass(slots=True)
class Answered:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def refusal(self) -> tuple[int, str]:
        """Status, and the error's type."""
        return int(self.headers[":status"]), json.loads(self.body)["error"]["type"]


class RawHttp2:
    """One connection. It acknowledges nothing and gives no window by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = Encoder()
        self._decoder = Decoder()
        self._window = (1 << 16) - 1
        self.streams: dict[int, Answered] = {}
        self.goaway: int | None = None
        """The code with which the router ended the connection."""

    async def room(self, count: int) -> None:
        """Return once the connection has room for so much data."""
        while self._window < count:
            assert await self.next_frame() is not None, "the connection is over"

    def raw(self, data: bytes) -> None:
        self._writer.write(data)

    def send(self, *frames: Frame) -> None:
        self._window -= sum(len(frame.data) for frame in frames if isinstance(frame, DataFrame))
        self.raw(b"".join(frame.serialize() for frame in frames))

    def block(self, headers: Sequence[Header]) -> bytes:
        """Headers as bytes. The next block rests on it: it has to be sent."""
        return self._encoder.encode(headers, huffman=False)

    def head(self, stream_id: int, headers: Sequence[Header], *flags: str) -> HeadersFrame:
        return HeadersFrame(stream_id, self.block(headers), flags=["END_HEADERS", *flags])

    def ask(self, stream_id: int, headers: Sequence[Header], body: bytes | None = None) -> None:
        """Send a whole request."""
        if body is None:
            self.send(self.head(stream_id, headers, "END_STREAM"))
        else:
            self.send(self.head(stream_id, headers), DataFrame(stream_id, body, flags=["END_STREAM"]))

    def leave(self) -> None:
        """Be gone, without a word."""
        self._writer.transport.abort()

    def end(self, stream_id: int) -> None:
        """Say that a request has no more to come."""
        self.send(DataFrame(stream_id, b"", flags=["END_STREAM"]))

    async def answer(self, stream_id: int) -> Answered:
        """Return what came on a stream once nothing more will."""
        while True:
            answered = self.streams.get(stream_id)
            if answered is not None and (answered.ended or answered.reset is not None):
                return answered
            assert await self.next_frame() is not None, "the connection is over"

    async def ended(self) -> int | None:
        """Read to the end; return the code that the router gave for it."""
        while await self.next_frame() is not None:
            pass
        return self.goaway

    async def next_frame(self) -> Frame | None:
        """Return the next frame, None at the end of the connection."""
        try:
            head = await self._reader.readexactly(_HEAD_BYTES)
            frame, length = Frame.parse_frame_header(memoryview(head))
            frame.parse_body(memoryview(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self._keep(frame)
        return frame

    def _keep(self, frame: Any) -> None:
        if isinstance(frame, GoAwayFrame):
            self.goaway = frame.error_code
            return
        if isinstance(frame, WindowUpdateFrame) and frame.stream_id == 0:
            self._window += frame.window_increment
        answered = self.streams.setdefault(frame.stream_id, Answered())
        if isinstance(frame, HeadersFrame):
            answered.headers.update({str(name): str(value) for name, value in self._decoder.decode(frame.data)})
        elif isinstance(frame, DataFrame):
            answered.body += frame.data
        elif isinstance(frame, RstStreamFrame):
            answered.reset = frame.error_code
        answered.ended = answered.ended or "END_STREAM" in frame.flags


@asynccontextmanager
async def raw_http2(
    port: int,
    tls: ssl.SSLContext,
    *,
    settings: dict[int, int] | None = None,
    window: int = 1 << 20,
    name: str = "127.0.0.1",
) -> AsyncIterator[RawHttp2]:
    """Connect, begin, and make room for `window` bytes more on the whole connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)
    try:
        connection = RawHttp2(reader, writer)
        connection.raw(PREFACE)
        connection.send(SettingsFrame(0, settings=settings or {}))
        if window:
            connection.send(WindowUpdateFrame(0, window_increment=window))
        yield connection
    finally:
        writer.transport.abort()
