"""Whoever has no key writes no router's log full, whatever it sends and however often."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.types import EventDict

from libs.errors import Code, MeshError
from libs.logs.thinning import Thinning
from services.router.face.door import INFER
from tests.fakes.grpc_clients import grpc_line
from tests.fakes.https_clients import Site, https_site
from tests.fakes.raw_grpc import begin, outcome
from tests.fakes.raw_http2 import RawHttp2, get, raw_http2
from tests.fakes.routers import PATIENCE_SECONDS

TIMES = 20


class RegistryAway(MeshError):
    code = Code.UNAVAILABLE
    reason = "PEER_UNREACHABLE"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with https_site(tmp_path) as running:
        yield running


@pytest.fixture
def lines(site: Site) -> Iterator[list[EventDict]]:
    with capture_logs([Thinning()]) as lines:
        yield lines


def kinds(lines: list[EventDict]) -> Counter[tuple[str, str | None]]:
    return Counter((line["event"], line.get("reason")) for line in lines)


async def nonsense(site: Site) -> None:
    assert b" 400 " in await site.raw(b"NONSENSE\r\n\r\n")


async def nonsense_after_the_handshake(site: Site) -> None:
    async with raw_http2(site.port, site.tls_h2) as client:
        client.raw(b"\x00" * 100)
        await client.ended()


async def a_request_by_another_scheme(site: Site) -> None:
    async with raw_http2(site.port, site.tls_h2) as client:
        client.ask(1, [(name, "http" if name == ":scheme" else value) for name, value in get()])
        assert (await client.answer(1)).headers[":status"] == "400"


async def a_key_while_the_registry_is_away(site: Site) -> None:
    site.directory.broken = RegistryAway("no answer")
    response, _ = await site.ask("GET", "/v1/models", key="sk-of-nobody")
    assert response.status == 503


@pytest.mark.parametrize(
    ("send", "kind"),
    [
        (nonsense, ("unreadable request", None)),
        (nonsense_after_the_handshake, ("unreadable frames", None)),
        (a_request_by_another_scheme, ("unreadable request", None)),
        (a_key_while_the_registry_is_away, ("tenant lookup failed", "PEER_UNREACHABLE")),
    ],
)
async def test_what_anybody_may_send_has_one_line_however_often_it_comes(
    site: Site, lines: list[EventDict], send: Callable[[Site], Awaitable[None]], kind: tuple[str, str | None]
) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        for _ in range(TIMES):
            await send(site)
    assert kinds(lines) == {kind: 1}


async def outcomes(client: RawHttp2, method: str) -> set[tuple[int, str | None]]:
    streams = range(1, 2 * TIMES, 2)
    for stream_id in streams:
        begin(client, stream_id, method)
    return {outcome(await client.answer(stream_id)) for stream_id in streams}


async def test_calls_without_a_key_have_one_line_of_each_reason(tmp_path: Path) -> None:
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        grpc_line(tmp_path) as line,
        raw_http2(line.port, line.tls_h2) as stranger,
        raw_http2(line.port, line.tls_h2) as another,
    ):
        with capture_logs([Thinning()]) as lines:
            assert {reason for _, reason in await outcomes(stranger, INFER)} == {"API_KEY_INVALID"}
            assert {reason for _, reason in await outcomes(another, "/grpc.health.v1.Health/Check")} == {
                "METHOD_NOT_ALLOWED"
            }
        assert kinds(lines) == {("refused", "API_KEY_INVALID"): 1, ("refused", "METHOD_NOT_ALLOWED"): 1}
