"""Connections of a router's clients: how many, for how long, how much they hold, and how they end."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from hyperframe.frame import PingFrame
from structlog.testing import capture_logs

from libs.aci.encoding import digest
from libs.aci.receipt_events import Aborted
from tests.fakes.https_clients import KEY, MAX_BODY_BYTES, OTHER_KEY, Site, https_site
from tests.fakes.nodes import BUFFERED, STREAMED
from tests.fakes.raw_http2 import get, post, raw_http2
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, prompt

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
MODELS = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
PLACES = 8
Holding = Callable[[Site, AsyncExitStack], Awaitable[None]]
"""Takes a place, which ends with the stack at the latest."""


async def connect(site: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls)


async def healthy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Ask once; return the head of the answer."""
    writer.write(HEALTH)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(await reader.readuntil(b"}")) == {"status": "ok"}
    return head


def upload(length: int) -> bytes:
    """The head of a prompt whose body is still to come."""
    return (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def refused(site: Site, reason: str) -> int:
    return site.bench.metrics.connections.turned_away.numbers[reason]


async def answered(reader: asyncio.StreamReader) -> None:
    """Read one answer to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    await reader.readexactly(int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]))


async def listed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask once, as a tenant."""
    writer.write(MODELS)
    await answered(reader)


async def announced(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begin a prompt, as a tenant: it runs until its body has come."""
    writer.write(upload(len(prompt())).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    assert b" 100 " in await reader.readuntil(b"\r\n\r\n")


async def test_a_connection_beyond_those_that_are_used_is_closed_at_once_and_the_others_go_on(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_connections=2, idle_seconds=PATIENCE_SECONDS, body_seconds=PATIENCE_SECONDS) as site,
    ):
        first, second = await connect(site), await connect(site)
        await announced(*first)
        await announced(*second)
        with pytest.raises(OSError):  # noqa: PT011  # Cut off in the middle of the handshake, one way or another.
            await connect(site)
        assert refused(site, "full") == 1
        second[1].close()
        await second[1].wait_closed()
        first[1].write(prompt())
        await answered(first[0])
        while site.bench.metrics.connections.open.numbers[""] > 1:
            await healthy(*first)  # Until the router, too, has seen it end.
        third = await connect(site)
        await healthy(*third)
        assert refused(site, "displaced") == 0
        for _, writer in (first, third):
            writer.transport.abort()


async def test_who_does_not_even_begin_tls_is_closed_in_time(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), https_site(tmp_path, idle_seconds=0.3) as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        assert await reader.read() == b""
        writer.close()
        assert refused(site, "handshake") == 1


def end(writer: asyncio.StreamWriter) -> None:
    """Whoever is to call it keeps the connection, and its reader, until then."""
    writer.transport.abort()


async def silent(site: Site, stack: AsyncExitStack) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    stack.callback(end, writer)


def saying(said: bytes, answered: bytes = b"") -> Holding:
    """Holds a place by TLS, what is said there, and what is read until it was answered so."""

    async def hold(site: Site, stack: AsyncExitStack) -> None:
        reader, writer = await connect(site)
        stack.callback(end, writer)
        writer.write(said)
        if answered:
            await reader.readuntil(answered)

    return hold


async def silent_http2(site: Site, stack: AsyncExitStack) -> None:
    await stack.enter_async_context(raw_http2(site.port, site.tls_h2))


async def not_reading(site: Site, stack: AsyncExitStack) -> None:
    client = await stack.enter_async_context(raw_http2(site.port, site.tls_h2, settings={4: 0}, window=0))
    client.ask(1, get())
    client.send(PingFrame(0, opaque_data=bytes(8)))
    while not isinstance(await client.next_frame(), PingFrame):
        pass  # By then the request was read, too.


HOLDING: dict[str, Holding] = {
    "TCP": silent,
    "TLS": saying(b""),
    "half a head": saying(HEALTH[:30]),
    "a request without a key": saying(HEALTH, b"}"),
    "a wrong key": saying(MODELS.replace(KEY.encode(), b"sk-wrong"), b"}"),
    "HTTP/2": silent_http2,
    "HTTP/2, an answer without a window": not_reading,
}


@pytest.mark.parametrize("hold", HOLDING.values(), ids=HOLDING)
async def test_strangers_that_hold_all_places_keep_no_tenant_out_however_often_they_come_again(
    tmp_path: Path, hold: Holding
) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_connections=PLACES, idle_seconds=PATIENCE_SECONDS) as site,
        raw_http2(site.port, site.tls_h2) as http2,
        AsyncExitStack() as stack,
    ):
        kept, asked = await connect(site), [*get("/v1/models"), ("authorization", f"Bearer {KEY}")]
        await listed(*kept)
        http2.ask(1, asked)
        assert (await http2.answer(1)).headers[":status"] == "200"
        for strangers in (2 * PLACES, *[PLACES // 2] * 5):
            for _ in range(strangers):
                await hold(site, stack)
            reader, writer = await connect(site)
            await listed(reader, writer)
            end(writer)
            await listed(*kept)
        http2.ask(3, asked)
        assert (await http2.answer(3)).headers[":status"] == "200"
        assert refused(site, "full") == 0
        assert refused(site, "displaced") > PLACES
        kept[1].transport.abort()


async def resting(site: Site, stack: AsyncExitStack) -> None:
    reader, writer = await connect(site)
    stack.callback(end, writer)
    await listed(reader, writer)


async def resting_http2(site: Site, stack: AsyncExitStack) -> None:
    client = await stack.enter_async_context(raw_http2(site.port, site.tls_h2))
    client.ask(1, [*get("/v1/models"), ("authorization", f"Bearer {KEY}")])
    assert (await client.answer(1)).headers[":status"] == "200"


@pytest.mark.parametrize("rest", [resting, resting_http2], ids=["HTTP/1.1", "HTTP/2"])
async def test_a_tenants_connections_on_which_nothing_runs_keep_nobody_out_and_what_runs_goes_on(
    tmp_path: Path, rest: Holding
) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(
            tmp_path, max_connections=PLACES, idle_seconds=PATIENCE_SECONDS, body_seconds=PATIENCE_SECONDS
        ) as site,
        AsyncExitStack() as stack,
    ):
        running = await connect(site)
        stack.callback(end, running[1])
        await announced(*running)
        for _ in range(2 * PLACES):
            await rest(site, stack)
        reader, writer = await connect(site)
        stack.callback(end, writer)
        writer.write(MODELS.replace(KEY.encode(), OTHER_KEY.encode()))
        await answered(reader)
        assert (refused(site, "full"), refused(site, "displaced")) == (0, PLACES + 2)
        running[1].write(prompt())
        await answered(running[0])


@pytest.mark.parametrize("hold", [not_reading, resting], ids=["strangers that ask", "a tenant that rests"])
async def test_whoever_comes_has_time_to_say_who_they_are(tmp_path: Path, hold: Holding) -> None:
    """Others come meanwhile, and nobody else is as easily told to leave as who has said nothing yet."""
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_connections=2 * PLACES, idle_seconds=PATIENCE_SECONDS) as site,
        AsyncExitStack() as stack,
    ):
        for _ in range(2 * PLACES):
            await hold(site, stack)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        stack.callback(end, writer)
        await silent(site, stack)
        await writer.start_tls(site.tls, server_hostname="127.0.0.1")
        await listed(reader, writer)
        assert (refused(site, "full"), refused(site, "displaced")) == (0, 2)


async def test_a_strangers_connection_makes_place_before_a_tenants_on_which_nothing_runs(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_connections=2, idle_seconds=PATIENCE_SECONDS) as site,
        AsyncExitStack() as stack,
    ):
        rested = await connect(site)
        stack.callback(end, rested[1])
        await listed(*rested)
        site.directory.answers.clear()
        for said in (HEALTH, MODELS.replace(KEY.encode(), OTHER_KEY.encode())):  # The second is being looked up.
            await saying(said)(site, stack)
        _, writer = await connect(site)
        stack.callback(end, writer)
        site.directory.answers.set()
        await listed(*rested)


async def test_each_that_comes_displaces_one_however_many_come_at_once(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_connections=PLACES, idle_seconds=PATIENCE_SECONDS) as site,
        AsyncExitStack() as stack,
        asyncio.TaskGroup() as tasks,
    ):
        kept, connections = await connect(site), site.bench.metrics.connections
        await listed(*kept)
        for _ in range(10 * PLACES):
            tasks.create_task(silent(site, stack))
        while refused(site, "displaced") < 9 * PLACES + 1 or connections.open.numbers[""] > PLACES:
            await healthy(*kept)
        assert (refused(site, "displaced"), connections.open.numbers[""]) == (9 * PLACES + 1, PLACES)
        kept[1].transport.abort()


async def test_strangers_whose_keys_are_looked_up_for_ever_keep_no_tenant_out(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_connections=PLACES, idle_seconds=PATIENCE_SECONDS) as site,
        AsyncExitStack() as stack,
    ):
        kept = await connect(site)
        await listed(*kept)
        site.directory.answers.clear()
        for number in range(2 * PLACES):
            await saying(MODELS.replace(KEY.encode(), b"sk-%d" % number))(site, stack)
        reader, writer = await connect(site)
        stack.callback(end, writer)
        await listed(reader, writer)
        await listed(*kept)
        site.directory.answers.set()
        kept[1].transport.abort()


async def test_what_runs_for_a_tenant_or_alone_is_not_cut_off_by_who_comes(tmp_path: Path) -> None:
    """A tenant's stream that is the first on its connection, and one whose key is looked up for the first time, among
    strangers that are silent.
    """
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_connections=PLACES, idle_seconds=PATIENCE_SECONDS) as site,
        AsyncExitStack() as stack,
    ):
        node = site.bench.nodes[0]
        node.stream(*STREAMED)
        node.waits_at = 1
        streaming, body = await connect(site), prompt(stream=True)
        streaming[1].write(upload(len(body)).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + body)
        await node.waiting.wait()
        site.directory.answers.clear()
        asked, looked_up = site.directory.asked, await connect(site)
        looked_up[1].write(MODELS.replace(KEY.encode(), OTHER_KEY.encode()))
        for _ in range(3 * PLACES):
            await silent(site, stack)
        while site.directory.asked == asked:
            await silent(site, stack)
        site.directory.answers.set()
        assert (await looked_up[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        node.go_on.set()
        answer = await streaming[0].read()
        assert answer.endswith(b"\r\n0\r\n\r\n")
        assert all(chunk in answer for chunk in STREAMED)
        looked_up[1].transport.abort()
        streaming[1].close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_an_older_tls_is_refused(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), https_site(tmp_path) as site:
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = old.maximum_version = version
        with pytest.raises(OSError):  # noqa: PT011
            await asyncio.open_connection("127.0.0.1", site.port, ssl=old)
        response, _ = await site.ask("GET", "/health")
        assert response.status == 200


async def test_what_is_no_tls_is_closed_without_an_answer(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), https_site(tmp_path) as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(HEALTH)
        assert b"HTTP" not in await reader.read()
        writer.close()


async def test_an_unknown_name_in_tls_gets_the_certificate_that_there_is(tmp_path: Path) -> None:
    """The client judges it; what a certificate is for, it says itself."""
    async with asyncio.timeout(PATIENCE_SECONDS), https_site(tmp_path) as site:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls, server_hostname="elsewhere.example")


async def test_a_connection_ends_after_its_requests_and_says_so(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), https_site(tmp_path, max_connection_requests=3) as site:
        reader, writer = await connect(site)
        assert b"Connection: close" not in await healthy(reader, writer)
        assert b"Connection: close" not in await healthy(reader, writer)
        assert b"Connection: close" in await healthy(reader, writer)
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("second", ["HTTP/1.1", "HTTP/2"])
async def test_bodies_have_one_room_and_whoever_comes_when_it_is_full_is_told_when_to_come_again(
    tmp_path: Path, second: str
) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_bodies_bytes=MAX_BODY_BYTES, body_seconds=PATIENCE_SECONDS) as site,
        raw_http2(site.port, site.tls_h2) as client,
    ):
        filling = upload(MAX_BODY_BYTES) + b" " * (MAX_BODY_BYTES - len(prompt()))
        reader, writer = await connect(site)
        writer.write(filling)
        await writer.drain()
        body = prompt() + b" "  # One byte too many, with what has come.
        while site.room.taken < MAX_BODY_BYTES - len(prompt()):
            await site.ask("GET", "/health")
        if second == "HTTP/2":
            client.ask(1, post(CHAT, KEY), body)
            answered = await client.answer(1)
            assert answered.refusal == (503, "service_unavailable")
            assert answered.headers["retry-after"] == "1"
        else:
            response, refusal = await site.ask("POST", CHAT, key=KEY, body=body)
            assert (response.status, json.loads(refusal)["error"]["type"]) == (503, "service_unavailable")
            assert response.headers["Retry-After"] == "1"
        writer.write(prompt())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert BUFFERED[1] in await reader.readuntil(BUFFERED[1])
        response, _ = await site.ask("POST", CHAT, key=KEY, body=body)
        assert response.status == 200
        assert site.room.taken == 0
        writer.transport.abort()


async def test_a_tenant_with_large_bodies_fills_its_own_part_and_nobody_elses(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_bodies_bytes=4 * MAX_BODY_BYTES, body_seconds=PATIENCE_SECONDS) as site,
        raw_http2(site.port, site.tls_h2) as client,
    ):
        _, writer = await connect(site)
        writer.write(upload(MAX_BODY_BYTES) + b" " * (MAX_BODY_BYTES - 1))
        await writer.drain()
        while site.room.taken < MAX_BODY_BYTES - 1:
            await site.ask("GET", "/health")
        response, _ = await site.ask("POST", CHAT, key=KEY, body=prompt())
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        receipt = await site.bench.logged()
        assert receipt["receipt_id"] == response.headers["X-Receipt-Id"]
        client.ask(1, post(CHAT, KEY), prompt())
        assert (await client.answer(1)).refusal == (503, "service_unavailable")
        response, _ = await site.ask("POST", CHAT, key=OTHER_KEY, body=prompt())
        assert response.status == 200
        client.ask(3, post(CHAT, OTHER_KEY), prompt())
        assert (await client.answer(3)).headers[":status"] == "200"
        writer.transport.abort()


async def test_what_is_only_announced_takes_no_room(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, max_bodies_bytes=MAX_BODY_BYTES, body_seconds=PATIENCE_SECONDS) as site,
    ):
        announcing = [await connect(site) for _ in range(5)]
        for reader, writer in announcing:
            writer.write(upload(MAX_BODY_BYTES).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")  # Its body is being read.
        response, _ = await site.ask("POST", CHAT, key=KEY, body=prompt())
        assert response.status == 200
        for _, writer in announcing:
            writer.transport.abort()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_takes_nothing_for_too_long_is_cut_off_and_said_to_be_slow(
    tmp_path: Path, stream: bool
) -> None:
    event = b'data: {"choices":[{"delta":{"content":"' + b"a" * (1 << 20) + b'"}}]}\n\n'
    async with https_site(tmp_path, stall_seconds=0.5) as site, asyncio.timeout(PATIENCE_SECONDS):
        if stream:
            site.bench.nodes[0].stream(*[event] * 15)  # More than the sockets between them take.
        else:
            site.bench.nodes[0].chunks = [b"x" * (1 << 20)] * 15
        reader, writer = await connect(site)
        writer.write(upload(len(prompt(stream=stream))) + prompt(stream=stream))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        document = await site.bench.logged()
        if not stream:
            document = await site.bench.logged()  # The response was committed before it went out.
            assert document["effect"] == "release_unknown"
        writer.transport.abort()
    if stream:
        receipt = site.bench.only_receipt()
        assert [each for each in receipt.events if isinstance(each, Aborted)] == [Aborted("client_too_slow")]


async def test_a_router_that_stops_lets_a_stream_end_and_closes_what_is_idle(tmp_path: Path) -> None:
    async with https_site(tmp_path, drain_seconds=PATIENCE_SECONDS, idle_seconds=PATIENCE_SECONDS) as site:
        node = site.bench.nodes[0]
        node.stream()
        node.waits_at = 1
        async with asyncio.timeout(PATIENCE_SECONDS), raw_http2(site.port, site.tls_h2) as idle_http2:
            idle = await connect(site)
            await healthy(*idle)
            idle_http2.ask(1, get())
            await idle_http2.answer(1)
            response = await site.session.post(
                site.url(CHAT), data=prompt(stream=True), headers={"Authorization": f"Bearer {KEY}"}
            )
            assert await response.content.readuntil(b"\n\n") == STREAMED[0]
            stopping = asyncio.create_task(site.stop())
            assert await idle[0].read() == b""
            assert await idle_http2.ended() == 0
            with pytest.raises(aiohttp.ClientConnectionError):
                await site.ask("GET", "/health")
            node.go_on.set()
            assert await response.content.read() == b"".join(STREAMED[1:])
            await stopping
            idle[1].close()
    assert site.bench.only_receipt().returned.body_hash == digest(b"".join(STREAMED))


async def test_a_request_behind_one_that_runs_is_not_begun_by_a_router_that_stops(tmp_path: Path) -> None:
    async with https_site(tmp_path, drain_seconds=PATIENCE_SECONDS) as site, asyncio.timeout(PATIENCE_SECONDS):
        node = site.bench.nodes[0]
        node.stream()
        node.waits_at = 1
        reader, writer = await connect(site)
        asked = upload(len(prompt(stream=True))) + prompt(stream=True)
        writer.write(asked + asked)
        await node.waiting.wait()
        stopping = asyncio.create_task(site.stop())
        await site.refusing()
        node.go_on.set()
        answer = await reader.read()
        assert answer.count(b"HTTP/1.1 200 ") == 1
        assert answer.endswith(b"0\r\n\r\n")
        await stopping
        writer.close()
    assert len(node.requests) == 1


async def test_unreadable_requests_leave_no_trace_of_what_they_said(tmp_path: Path) -> None:
    async with https_site(tmp_path) as site:
        with capture_logs() as logs:
            answer = await site.raw(b"GET / HTTP/1.1\r\nHost: a\r\nX-Secret\0: hush\r\n\r\n")
        assert b"hush" not in answer
        assert "hush" not in repr(logs)
