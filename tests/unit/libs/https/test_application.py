"""An application behind a bounded listener, over real TLS: what is no request never reaches it, and nobody holds it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from libs.https.application import ApplicationBounds, serving_application
from libs.https.listening import PortTaken
from libs.rpc.tls import load_client_context, load_server_context
from tests.fakes.https_application import PATIENCE_SECONDS, status_of, unreadable_requests
from tests.fakes.pki import ThrowawayCa

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
UNREADABLE = unreadable_requests("/health")
LARGE = 16 << 20


@dataclass(slots=True)
class Served:
    """A running listener, and what its application has seen."""

    tls: ssl.SSLContext
    port: int = 0
    paths: list[str] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def application(self) -> web.Application:
        async def seen(request: web.Request) -> web.Response:
            self.paths.append(request.path)
            if request.path == "/large":
                return web.Response(body=bytes(LARGE))
            if request.path == "/bug":
                raise RuntimeError("bug")
            if request.path == "/slow":
                self.waiting.set()
                await self.go_on.wait()
            return web.Response(text="ok")

        served = web.Application()
        for path in ("/health", "/large", "/slow", "/bug"):
            served.router.add_get(path, seen)
        return served

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls)

    async def healthy(self) -> None:
        closing = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert await status_of(self.port, self.tls, closing) == 200


@asynccontextmanager
async def serving(bounds: ApplicationBounds | None = None) -> AsyncIterator[Served]:
    ca = ThrowawayCa()
    key, certificate = ca.leaf(None, "localhost", ip="127.0.0.1")
    served = Served(load_client_context(ca_pem=ca.pem))
    context = load_server_context(key_pem=key, certificate_pem=certificate)
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        serving_application("127.0.0.1:0", served.application(), context, bounds or ApplicationBounds()) as served.port,
    ):
        yield served


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_nobody_should_send_is_refused_and_no_application_sees_it(name: str) -> None:
    async with serving() as served:
        hostile = UNREADABLE[name]
        assert await status_of(served.port, served.tls, hostile.data) == hostile.refusal[0]
        assert served.paths == []
        await served.healthy()


async def test_a_route_that_is_not_there_and_a_bug_are_answers_and_the_connection_goes_on() -> None:
    async with serving() as served:
        reader, writer = await served.connect()
        for path, status in ((b"/nowhere", b"404"), (b"/health", b"200")):
            writer.write(HEALTH.replace(b"/health", path))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.split(b" ")[1] == status
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.write(HEALTH.replace(b"/health", b"/bug"))
        assert (await reader.read()).endswith(b"\r\n\r\nINTERNAL\n")
        writer.close()


async def test_a_connection_beyond_the_limit_is_closed_at_once_and_what_runs_goes_on() -> None:
    async with serving(ApplicationBounds(max_connections=2)) as served:
        held = [await served.connect() for _ in range(2)]
        for _, writer in held:
            served.waiting.clear()
            writer.write(HEALTH.replace(b"/health", b"/slow"))
            await served.waiting.wait()
        with pytest.raises(OSError):  # noqa: PT011  # Cut off in the middle of the handshake, one way or another.
            await served.connect()
        served.go_on.set()
        for reader, writer in held:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            writer.transport.abort()


@pytest.mark.parametrize("said", [None, b"", HEALTH[:20], HEALTH], ids=["no TLS", "nothing", "half a head", "one"])
async def test_who_says_nothing_more_gives_way_and_what_runs_does_not(said: bytes | None) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), serving(ApplicationBounds(max_connections=4)) as served:
        reader, writer = await served.connect()
        writer.write(HEALTH.replace(b"/health", b"/slow"))
        await served.waiting.wait()
        held = []
        for _ in range(12):
            tls = None if said is None else served.tls
            held.append(await asyncio.open_connection("127.0.0.1", served.port, ssl=tls))
            held[-1][1].write(said or b"")
            if said == HEALTH:
                await held[-1][0].readuntil(b"ok")
        await served.healthy()
        served.go_on.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        for _, each in (*held, (reader, writer)):
            each.transport.abort()


async def test_an_answer_that_is_on_its_way_is_not_cut_off() -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), serving(ApplicationBounds(max_connections=2)) as served:
        reader, writer = await served.connect()
        writer.write(HEALTH.replace(b"/health", b"/large"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        for _ in range(4):
            await served.healthy()
        assert len(await reader.readexactly(LARGE)) == LARGE
        writer.transport.abort()


@pytest.mark.parametrize("sent", [None, b"", HEALTH[:20], HEALTH], ids=["no TLS", "nothing", "half a head", "one"])
async def test_who_says_nothing_more_is_closed_in_time(sent: bytes | None) -> None:
    async with serving(ApplicationBounds(idle_seconds=0.3)) as served:
        tls = None if sent is None else served.tls
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=tls)
        writer.write(sent or b"")
        await reader.read()
        writer.close()
        await served.healthy()


@pytest.mark.parametrize("requests", [1, 3])
async def test_who_takes_nothing_of_an_answer_is_cut_off(requests: int) -> None:
    async with serving(ApplicationBounds(idle_seconds=0.3, stall_seconds=0.3, max_connections=1)) as served:
        _, writer = await served.connect()
        writer.write(HEALTH.replace(b"/health", b"/large") * requests)
        while True:
            try:
                await served.healthy()
            except OSError:
                continue  # Its place is taken until then.
            break
        writer.transport.abort()


async def test_a_connection_ends_after_its_requests_and_says_so() -> None:
    async with serving(ApplicationBounds(max_connection_requests=2)) as served:
        reader, writer = await served.connect()
        writer.write(HEALTH * 3)
        answers = await reader.read()
        assert (answers.count(b"HTTP/1.1 200 "), answers.count(b"Connection: close")) == (2, 1)
        writer.close()
    assert served.paths == ["/health"] * 2


async def test_what_runs_ends_and_what_is_idle_is_closed_when_the_listener_ends() -> None:
    async with serving(ApplicationBounds(drain_seconds=PATIENCE_SECONDS)) as served:
        idle_reader, idle = await served.connect()
        reader, writer = await served.connect()
        writer.write(HEALTH.replace(b"/health", b"/slow"))
        await served.waiting.wait()

        async def ended() -> bytes:
            assert await idle_reader.read() == b""
            served.go_on.set()
            return await reader.read()

        ending = asyncio.create_task(ended())
    assert (await ending).startswith(b"HTTP/1.1 200 ")
    for each in (idle, writer):
        each.close()


async def test_an_address_that_is_taken_is_said_so() -> None:
    async with serving() as served:
        with pytest.raises(PortTaken):
            async with serving_application(
                f"127.0.0.1:{served.port}", web.Application(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            ):
                pass
