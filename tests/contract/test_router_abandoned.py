"""A client with a key that leaves before its prompt is there: no receipt, and a number in its tenant's usage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hyperframe.frame import DataFrame, RstStreamFrame

from libs.transparency.leaf import Kind
from services.router.face.door import INFER
from tests.fakes.grpc_clients import grpc_line
from tests.fakes.https_clients import KEY, Site, https_site
from tests.fakes.raw_grpc import begin, outcome
from tests.fakes.raw_http2 import post, raw_http2
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, RouterBench

ABANDONED = "PROMPT_ABANDONED"
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000\r\n"
_CANCEL = 8


async def assert_counted(bench: RouterBench, reason: str = ABANDONED) -> None:
    while not bench.metrics.refusals.numbers:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.01)
    assert bench.metrics.refusals.numbers == {reason: 1}
    async with bench.usage.recording():
        pass
    (usage,) = bench.ledger.of(Kind.USAGE)
    assert (usage["rows"], usage["without_receipt"]) == ([], {reason: 1})
    assert bench.ledger.of(Kind.RECEIPT) == []


async def until_it_comes(site: Site) -> None:
    while not site.room.taken:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.01)


async def test_half_a_body_over_http1(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), https_site(tmp_path, body_seconds=PATIENCE_SECONDS) as site:
        _, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls)
        writer.write(f'{HEAD}\r\n{{"model":'.encode())
        await until_it_comes(site)
        writer.transport.abort()
        await assert_counted(site.bench)


async def test_leave_to_send_a_body_that_never_comes_over_http1(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), https_site(tmp_path, body_seconds=PATIENCE_SECONDS) as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls)
        writer.write(f"{HEAD}Expect: 100-continue\r\n\r\n".encode())
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        await assert_counted(site.bench)


async def test_a_router_that_stops_while_a_body_comes(tmp_path: Path) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS), https_site(tmp_path, body_seconds=PATIENCE_SECONDS) as site:
        _, writer = await asyncio.open_connection("127.0.0.1", site.port, ssl=site.tls)
        writer.write(f'{HEAD}\r\n{{"model":'.encode())
        await until_it_comes(site)
        await site.stop()
        await assert_counted(site.bench)
        writer.close()


@pytest.mark.parametrize("leaves", ["the stream", "the connection"])
async def test_half_a_body_over_http2(tmp_path: Path, leaves: str) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        https_site(tmp_path, body_seconds=PATIENCE_SECONDS) as site,
        raw_http2(site.port, site.tls_h2) as client,
    ):
        client.send(client.head(1, post(CHAT, KEY)), DataFrame(1, b'{"model":'))
        await until_it_comes(site)
        if leaves == "the stream":
            client.send(RstStreamFrame(1, _CANCEL))
        else:
            client.leave()
        await assert_counted(site.bench)


@pytest.mark.parametrize("leaves", ["the stream", "the connection", "the router"])
async def test_half_a_message_over_grpc(tmp_path: Path, leaves: str) -> None:
    """gRPC tells of a client that has left as of one that sends no more."""
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path) as line,
        raw_http2(line.port, line.tls_h2) as client,
    ):
        begin(client, 1, INFER, KEY)
        client.send(DataFrame(1, b"\0\0\0\0\xffabc"))
        # Calls are begun in their order: when this one is over, the one before has been.
        begin(client, 3, INFER, "sk-of-nobody")
        assert outcome(await client.answer(3))[1] == "API_KEY_INVALID"
        if leaves == "the stream":
            client.send(RstStreamFrame(1, _CANCEL))
        elif leaves == "the connection":
            client.leave()
        else:
            await line.stop()
        await assert_counted(line.bench, "MESSAGE_MISSING")
