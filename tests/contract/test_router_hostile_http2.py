"""HTTP/2 as hostile clients speak it: frames that cost more than they say, heads that are none, unread streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from structlog.testing import capture_logs

from libs import jcs
from libs.aci.encoding import digest
from libs.aci.receipt import verify_receipt
from libs.aci.receipt_events import Aborted
from tests.fakes.https_clients import KEY, MAX_BODY_BYTES, Site, https_site
from tests.fakes.nodes import BUFFERED, STREAMED
from tests.fakes.raw_http2 import PREFACE, Header, RawHttp2, get, post, raw_http2
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, prompt

PROTOCOL, INTERNAL, FLOW_CONTROL, FRAME_SIZE, REFUSED, CALM = 0x1, 0x2, 0x3, 0x6, 0x7, 0xB
MANY = 3000
"""Frames: more than a client may send at once."""
INITIAL_WINDOW, ENABLE_PUSH = 0x4, 0x2


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with https_site(tmp_path, idle_seconds=PATIENCE_SECONDS) as running:
        yield running


@pytest.fixture
async def client(site: Site) -> AsyncIterator[RawHttp2]:
    async with asyncio.timeout(PATIENCE_SECONDS), raw_http2(site.port, site.tls_h2) as connected:
        yield connected


async def assert_serves(site: Site) -> None:
    response, _ = await site.ask("GET", "/health")
    assert response.status == 200


def floods() -> dict[str, Callable[[RawHttp2], bytes]]:
    """Frames of which each is allowed."""

    def many(*frames: Frame) -> bytes:
        return b"".join(frame.serialize() for frame in frames) * MANY

    def resets(client: RawHttp2) -> bytes:
        frames = [
            (client.head(number * 2 + 1, get(), "END_STREAM"), RstStreamFrame(number * 2 + 1, 8))
            for number in range(MANY)
        ]
        return b"".join(frame.serialize() for pair in frames for frame in pair)

    def data(client: RawHttp2) -> bytes:
        client.send(client.head(1, post(CHAT, KEY)))
        return many(DataFrame(1, b""))

    return {
        "streams reset at once": resets,
        "pings": lambda client: many(PingFrame(0, b"12345678")),
        "settings": lambda client: many(SettingsFrame(0)),
        "priorities": lambda client: many(PriorityFrame(1, depends_on=3, stream_weight=1)),
        "windows": lambda client: many(WindowUpdateFrame(0, window_increment=1)),
        "frames nobody knows": lambda client: many(ExtensionFrame(type=0xFA, stream_id=0, body=b"")),
        "empty data": data,
    }


@pytest.mark.parametrize("name", floods())
async def test_a_flood_of_frames_ends_the_connection(site: Site, client: RawHttp2, name: str) -> None:
    with capture_logs() as logs:
        client.raw(floods()[name](client))
        assert await client.ended() == CALM
    assert [entry["event"] for entry in logs if entry["event"] != "node admitted"].count("frames refused") == 1
    await assert_serves(site)


async def test_a_stream_that_was_reset_counts_no_more(tmp_path: Path) -> None:
    """Three times as many as may run, within the allowance, each reset before anything was done about it."""
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_streams=20) as site,
        raw_http2(site.port, site.tls_h2) as client,
    ):
        for number in range(60):
            stream_id = number * 2 + 1
            client.send(client.head(stream_id, get(), "END_STREAM"), RstStreamFrame(stream_id, 8))
        client.ask(stream_id := 1001, get())
        while (answered := await client.answer(stream_id)).reset == REFUSED:  # Those before have just been cancelled.
            client.ask(stream_id := stream_id + 2, get())
        assert answered.headers[":status"] == "200"


async def test_data_of_a_refused_stream_takes_no_room_for_good(tmp_path: Path) -> None:
    """All of them together send more than a connection has room for."""
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_streams=1) as site,
        raw_http2(site.port, site.tls_h2) as client,
    ):
        for number in range(1, 40, 4):
            await client.room(14_000)
            client.send(
                client.head(number, get(), "END_STREAM"),
                RstStreamFrame(number, 8),
                client.head(number + 2, get()),
                DataFrame(number + 2, b"x" * 14_000),
            )
            assert (await client.answer(number + 2)).reset in (REFUSED, 0)


def unspeakable() -> dict[str, tuple[Callable[[RawHttp2], bytes], int]]:
    """What ends the connection, and the code that says why."""

    def of(*frames: Frame) -> Callable[[RawHttp2], bytes]:
        return lambda client: b"".join(frame.serialize() for frame in frames)

    def begun(*frames: Frame) -> Callable[[RawHttp2], bytes]:
        """A head that goes on, and then these."""
        return lambda client: b"".join(
            frame.serialize() for frame in (HeadersFrame(1, client.block(get()), flags=[]), *frames)
        )

    def head(headers: Sequence[Header]) -> Callable[[RawHttp2], bytes]:
        return lambda client: client.head(1, headers, "END_STREAM").serialize()

    def streams(*numbers: int) -> Callable[[RawHttp2], bytes]:
        return lambda client: b"".join(client.head(number, get(), "END_STREAM").serialize() for number in numbers)

    def body(*frames: Frame, more: Sequence[Header] = ()) -> Callable[[RawHttp2], bytes]:
        return lambda client: b"".join(frame.serialize() for frame in (client.head(1, post(CHAT, KEY, *more)), *frames))

    window = [DataFrame(1, b"x" * (16 << 10))] * 5
    return {
        "a frame of sixteen megabytes, announced": (of_bytes(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"), FRAME_SIZE),
        "a frame just too long, announced": (of_bytes(b"\x00\x40\x01\x00\x00\x00\x00\x00\x01"), FRAME_SIZE),
        "the preface twice": (of_bytes(PREFACE), FRAME_SIZE),
        "a head in a thousand parts": (begun(*[ContinuationFrame(1, b"")] * 900), PROTOCOL),
        "another frame within a head": (begun(PingFrame(0, b"12345678")), PROTOCOL),
        "another stream within a head": (begun(HeadersFrame(3, b"", flags=[])), PROTOCOL),
        "a part of no head": (of(ContinuationFrame(1, b"", flags=["END_HEADERS"])), PROTOCOL),
        "a head that cannot be unpacked": (of(HeadersFrame(1, b"\xff" * 20, flags=["END_HEADERS"])), PROTOCOL),
        "a head that names itself over and over": (bomb(1000), CALM),
        "a head that is too large once unpacked": (bomb(8), CALM),
        "a field that is too long": (head(get("/health", ("x-long", "x" * 17_000))), FRAME_SIZE),
        "a stream of the server's": (streams(2), PROTOCOL),
        "a stream older than the last": (streams(5, 3), PROTOCOL),
        "the stream that is none": (of(HeadersFrame(1, b"", flags=["END_HEADERS"]), DataFrame(3, b"x")), PROTOCOL),
        "data on a stream that nobody opened": (of(DataFrame(7, b"x")), PROTOCOL),
        "a promise of the client's": (
            of(PushPromiseFrame(1, promised_stream_id=2, data=b"", flags=["END_HEADERS"])),
            PROTOCOL,
        ),
        "more data than there is room for": (body(*window), FLOW_CONTROL),
        "a window over the largest": (
            of(WindowUpdateFrame(0, window_increment=(1 << 31) - 1), WindowUpdateFrame(0, window_increment=1)),
            FLOW_CONTROL,
        ),
        "an initial window over the largest": (of(SettingsFrame(0, settings={INITIAL_WINDOW: 1 << 31})), FLOW_CONTROL),
        "a setting that is neither": (of(SettingsFrame(0, settings={ENABLE_PUSH: 2})), PROTOCOL),
        "more streams than may run": (held_streams, PROTOCOL),
        "a shorter body than announced": (
            body(DataFrame(1, b"x", flags=["END_STREAM"]), more=[("content-length", "5")]),
            PROTOCOL,
        ),
        "a longer body than announced": (
            body(DataFrame(1, b"xx", flags=["END_STREAM"]), more=[("content-length", "1")]),
            PROTOCOL,
        ),
        "a length that is no number": (head([*post(CHAT, KEY), ("content-length", "x")]), PROTOCOL),
        "a name in upper case": (head(get("/health", ("X-A", "b"))), PROTOCOL),
        "a field of one connection": (head(get("/health", ("connection", "close"))), PROTOCOL),
        "a transfer coding": (head(get("/health", ("transfer-encoding", "chunked"))), PROTOCOL),
        "an upgrade": (head(get("/health", ("upgrade", "websocket"))), PROTOCOL),
        "trailers of another kind": (head(get("/health", ("te", "gzip"))), PROTOCOL),
        "a line feed in a value": (head(get("/health", ("x-a", "b\nc"))), PROTOCOL),
        "a carriage return in a value": (head(get("/health", ("x-a", "b\rc"))), PROTOCOL),
        "NUL in a value": (head(get("/health", ("x-a", "b\0c"))), PROTOCOL),
        "a colon in a name": (head(get("/health", ("x:a", "b"))), PROTOCOL),
        "no path": (head(get()[:-1]), PROTOCOL),
        "an empty path": (head(get("")), PROTOCOL),
        "two paths": (head([*get(), (":path", "/")]), PROTOCOL),
        "two methods": (head([*get(), (":method", "POST")]), PROTOCOL),
        "a path behind a field": (head([*get()[:-1], ("x-a", "b"), get()[-1]]), PROTOCOL),
        "a pseudo-field nobody knows": (head([(":elsewhere", "x"), *get()]), PROTOCOL),
        "a status": (head([(":status", "200"), *get()]), PROTOCOL),
        "no host": (head([(":method", "GET"), (":scheme", "https"), (":path", "/health")]), PROTOCOL),
        "a host that differs": (head(get("/health", ("host", "elsewhere.example"))), PROTOCOL),
    }


def of_bytes(data: bytes) -> Callable[[RawHttp2], bytes]:
    return lambda client: data


def bomb(times: int) -> Callable[[RawHttp2], bytes]:
    """A long field, put into the table once and then named by one byte each time."""

    def made(client: RawHttp2) -> bytes:
        first = client.block([*get(), ("x-a", "x" * 3000)])
        return HeadersFrame(1, first + b"\xbe" * times, flags=["END_HEADERS", "END_STREAM"]).serialize()

    return made


def held_streams(client: RawHttp2) -> bytes:
    """More than the settings allow, none of which ends."""
    return b"".join(client.head(number * 2 + 1, post(CHAT, KEY)).serialize() for number in range(101))


@pytest.mark.parametrize("name", unspeakable())
async def test_what_is_no_http_2_ends_the_connection_with_its_reason(site: Site, client: RawHttp2, name: str) -> None:
    data, code = unspeakable()[name]
    with capture_logs() as logs:
        client.raw(data(client))
        assert await client.ended() == code
    assert not any("bug" in entry["event"] for entry in logs)
    assert site.bench.nodes[0].requests == []
    await assert_serves(site)


@pytest.mark.parametrize(
    "headers",
    [
        [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/health")],
        [(":method", "GET"), (":scheme", "https"), (":authority", "a@b"), (":path", "/health")],
        [(":method", "GET"), (":scheme", "https"), (":authority", "a, b"), (":path", "/health")],
        get("health"),
        get("/health#x"),
        get("/he alth"),
        get("https://elsewhere.example/health"),
        [*post(CHAT, KEY), ("content-length", "0"), ("content-length", "0")],
        [(":method", "CONNECT"), (":authority", "elsewhere.example:443")],
    ],
    ids=[
        "another scheme",
        "a host with a user",
        "two hosts",
        "no path",
        "a fragment",
        "a space",
        "a target at another host",
        "two lengths",
        "CONNECT",
    ],
)
async def test_a_head_for_nobody_is_refused_and_the_connection_goes_on(
    site: Site, client: RawHttp2, headers: list[Header]
) -> None:
    client.ask(1, headers)
    answered = await client.answer(1)
    assert answered.refusal == (400, "invalid_request_error")
    assert answered.headers["x-aci-keyset-digest"] == site.bench.workload.keyset.digest
    client.ask(3, get())
    assert (await client.answer(3)).headers[":status"] == "200"


async def test_two_keys_are_refused(site: Site, client: RawHttp2) -> None:
    client.ask(1, post(CHAT, KEY, ("authorization", f"Bearer {KEY}")), prompt())
    assert (await client.answer(1)).refusal == (400, "invalid_request_error")
    assert site.bench.nodes[0].requests == []


async def test_without_a_key_the_body_is_not_read_and_holds_nobody_up(site: Site, client: RawHttp2) -> None:
    """Together the bodies are more than a connection has room for, and no stream ends."""
    for stream_id in (1, 3, 5, 7):
        client.send(client.head(stream_id, [*post(CHAT, KEY)[:-1], ("authorization", "Bearer sk-wrong")]))
        await client.room(32_000)
        client.send(*[DataFrame(stream_id, b"x" * 16_000)] * 2)
        answered = await client.answer(stream_id)
        assert answered.refusal == (401, "unauthorized")
    client.ask(9, post(CHAT, KEY), prompt())
    assert (await client.answer(9)).body == b"".join(BUFFERED)


async def test_a_body_over_the_limit_is_refused_before_its_end(site: Site, client: RawHttp2) -> None:
    client.send(client.head(1, post(CHAT, KEY)), DataFrame(1, b"x" * (MAX_BODY_BYTES + 1)))
    assert (await client.answer(1)).refusal == (413, "request_too_large")


async def test_a_body_that_does_not_end_is_refused_in_time(site: Site, client: RawHttp2) -> None:
    client.send(client.head(1, post(CHAT, KEY)), DataFrame(1, b"{"))
    assert (await client.answer(1)).refusal == (408, "request_timeout")


async def test_a_stream_that_is_given_up_stops_the_engine_and_leaves_the_connection(
    site: Site, client: RawHttp2
) -> None:
    node = site.bench.nodes[0]
    node.stream()
    node.waits_at = 1
    client.ask(1, post(CHAT, KEY), prompt(stream=True))
    while not client.streams.get(1) or STREAMED[0] not in client.streams[1].body:
        await client.next_frame()
    client.send(RstStreamFrame(1, 8))
    await node.left.wait()
    receipt = verify_receipt(jcs.dumps(dict(await site.bench.logged())), site.bench.workload.keyset)
    assert Aborted("client_disconnected") in receipt.events
    assert receipt.returned.body_hash == digest(STREAMED[0])
    client.ask(3, get())
    assert (await client.answer(3)).headers[":status"] == "200"


@pytest.mark.parametrize("windows", [0, 1000])
async def test_a_client_that_gives_no_window_is_said_to_be_slow(tmp_path: Path, windows: int) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, stall_seconds=0.5) as site,
        raw_http2(site.port, site.tls_h2, settings={INITIAL_WINDOW: windows}) as client,
    ):
        site.bench.nodes[0].stream(*[b'data: {"choices":[{"delta":{"content":"' + b"a" * 2000 + b'"}}]}\n\n'] * 3)
        client.ask(1, post(CHAT, KEY), prompt(stream=True))
        answered = await client.answer(1)
        assert answered.reset is not None
        assert len(answered.body) == windows
        await site.bench.logged()
        receipt = site.bench.only_receipt()
        assert [event for event in receipt.events if isinstance(event, Aborted)] == [Aborted("client_too_slow")]
        client.ask(3, get("/nowhere", ("x-a", "b")))
        assert client.goaway is None


@pytest.mark.parametrize("begun", [b"", PREFACE[:10], PREFACE], ids=["silent", "half a preface", "no request"])
async def test_a_connection_without_a_request_is_closed_in_time(tmp_path: Path, begun: bytes) -> None:
    async with https_site(tmp_path, idle_seconds=0.3) as site, asyncio.timeout(PATIENCE_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls_h2)
        writer.write(begun)
        assert await reader.read()  # The settings, and the word that it ends.
        writer.close()


async def test_a_head_that_never_ends_is_closed_in_time(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, idle_seconds=0.3) as site,
        raw_http2(site.port, site.tls_h2) as client,
    ):
        client.send(HeadersFrame(1, client.block(get()), flags=[]))
        assert await client.ended() == 0


async def test_a_stream_that_comes_while_the_router_stops_is_told_to_go_elsewhere(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, drain_seconds=PATIENCE_SECONDS) as site,
        raw_http2(site.port, site.tls_h2) as client,
    ):
        node = site.bench.nodes[0]
        node.stream()
        node.waits_at = 1
        client.ask(1, post(CHAT, KEY), prompt(stream=True))
        await node.waiting.wait()
        stopping = asyncio.create_task(site.stop())
        await site.refusing()
        client.ask(3, get())
        refused = await client.answer(3)
        assert (*refused.refusal, refused.headers["retry-after"]) == (503, "service_unavailable", "0")
        node.go_on.set()
        assert (await client.answer(1)).body == b"".join(STREAMED)
        assert await client.ended() == 0
        await stopping


async def test_a_connection_ends_after_its_requests_once_all_are_answered(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_connection_requests=3, idle_seconds=PATIENCE_SECONDS) as site,
        raw_http2(site.port, site.tls_h2) as client,
    ):
        for stream_id in (1, 3, 5):
            client.ask(stream_id, get())
        for stream_id in (1, 3, 5):
            assert (await client.answer(stream_id)).headers[":status"] == "200"
        assert await client.ended() == 0


async def test_a_bug_in_the_middle_of_an_answer_resets_its_stream_alone(site: Site, client: RawHttp2) -> None:
    site.bench.nodes[0].stream()
    site.bench.ledger.broken = RuntimeError("bug")
    with capture_logs() as logs:
        client.ask(1, post(CHAT, KEY), prompt(stream=True))
        answered = await client.answer(1)
    assert (answered.ended, answered.reset) == (False, INTERNAL)
    assert STREAMED[0] in answered.body
    assert "bug in the listener" in [entry["event"] for entry in logs]
    client.ask(3, get())
    assert (await client.answer(3)).headers[":status"] == "200"
