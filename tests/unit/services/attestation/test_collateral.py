"""Collateral against a real PCCS endpoint: fetched once, kept while valid, never stormed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx
import pytest
from aiohttp import web

from libs.tee import tdx
from services.attestation.collateral import CollateralCache, CollateralUnavailable
from services.devtee.keys import MockKms
from services.devtee.machine import Machine
from services.devtee.pccs import serving_pccs
from services.devtee.pki import VendorPki
from services.devtee.platform import Platform
from tests.fakes.joined_mesh import Clock, JoinedMesh

HOUR = 3600


@dataclass(slots=True)
class Pccs:
    """A proxy before the machine's PCCS that counts, and can break or garble."""

    url: str = ""
    fetches: int = 0
    broken: bool = False
    garbled: bool = False
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def handler(self, behind: httpx.AsyncClient) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            if request.path.endswith("/pckcrl"):
                self.fetches += 1
                self.asked.set()
                await self.go_on.wait()
            if self.broken:
                return web.Response(status=503)
            answer = await behind.get(str(request.rel_url))
            headers = {name: value for name, value in answer.headers.items() if name.lower().endswith("issuer-chain")}
            body = answer.content
            if self.garbled and request.path.endswith("/qe/identity"):
                body = body.replace(b"nextUpdate", b"lastUpdate")
            content_type = answer.headers["content-type"].partition(";")[0]
            return web.Response(body=body, headers=headers, content_type=content_type, status=answer.status_code)

        return handle


@asynccontextmanager
async def proxied(machine: Machine, clock: Clock) -> AsyncIterator[Pccs]:
    pccs = Pccs()
    pccs.go_on.set()
    async with (
        serving_pccs("127.0.0.1", 0, machine.pki, lambda: int(clock.now)) as url,
        httpx.AsyncClient(base_url=url) as behind,
    ):
        application = web.Application()
        application.router.add_get("/{path:.*}", pccs.handler(behind))
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            pccs.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield pccs
        finally:
            await runner.cleanup()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def pccs(machine: Machine, clock: Clock) -> AsyncIterator[Pccs]:
    async with proxied(machine, clock) as running:
        yield running


@pytest.fixture
def cache(pccs: Pccs, clock: Clock) -> CollateralCache:
    return CollateralCache(pccs.url, 10.0, clock)


@pytest.fixture
def quote(mesh: JoinedMesh) -> bytes:
    return mesh.tds["router"].quote(b"x")


async def test_everybody_who_asks_at_once_waits_for_one_fetch(cache: CollateralCache, pccs: Pccs, quote: bytes) -> None:
    pccs.go_on.clear()
    asking = [asyncio.create_task(cache.held(quote)) for _ in range(5)]
    gone = asyncio.create_task(cache.held(quote))
    await pccs.asked.wait()
    gone.cancel()  # One who gives up disturbs nobody.
    pccs.go_on.set()
    answers = await asyncio.gather(*asking)
    assert pccs.fetches == 1
    assert all(answer is answers[0] for answer in answers)
    assert answers[0].valid_until == answers[0].collateral.expires_at()


async def test_the_one_who_fetches_may_be_cancelled(cache: CollateralCache, pccs: Pccs, quote: bytes) -> None:
    pccs.go_on.clear()
    first = asyncio.create_task(cache.held(quote))
    await pccs.asked.wait()
    second = asyncio.create_task(cache.held(quote))
    first.cancel()
    pccs.go_on.set()
    assert (await second).valid_until > 0
    assert pccs.fetches == 2


async def test_a_failure_is_repeated_for_a_moment_and_then_tried_again(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    pccs.broken = True
    for _ in range(3):
        with pytest.raises(CollateralUnavailable):
            await cache.held(quote)
    assert pccs.fetches == 1
    pccs.broken = False
    with pytest.raises(CollateralUnavailable):
        await cache.held(quote)
    clock.now += 3
    await cache.collateral(quote)
    assert pccs.fetches == 2


async def test_collateral_is_fetched_anew_before_it_ends(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    clock.now = held.valid_until - 7 * HOUR
    assert await cache.held(quote) is held
    clock.now = held.valid_until - 5 * HOUR
    renewed = await cache.held(quote)
    assert renewed.valid_until > held.valid_until
    assert pccs.fetches == 2


async def test_what_is_still_valid_is_used_while_the_pccs_is_away_and_no_longer(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    pccs.broken = True
    clock.now = held.valid_until - HOUR
    assert await cache.held(quote) is held
    assert await cache.held(quote) is held
    assert pccs.fetches == 2
    clock.now = held.valid_until
    with pytest.raises(CollateralUnavailable):
        await cache.held(quote)


async def test_an_answer_that_cannot_be_read_is_a_failure_like_any_other(
    cache: CollateralCache, pccs: Pccs, quote: bytes
) -> None:
    pccs.garbled = True
    for _ in range(2):
        with pytest.raises(CollateralUnavailable):
            await cache.held(quote)
    assert pccs.fetches == 1


async def test_a_pccs_that_does_not_answer_is_not_waited_for(pccs: Pccs, quote: bytes) -> None:
    pccs.go_on.clear()
    with pytest.raises(CollateralUnavailable):
        await CollateralCache(pccs.url, 0.1).held(quote)
    pccs.go_on.set()


async def test_platforms_that_nobody_knows_leave_no_room_taken(
    cache: CollateralCache, mesh: JoinedMesh, quote: bytes
) -> None:
    now = int(Clock().now)
    elsewhere = replace(Platform.random(), fmspc=bytes.fromhex("00a06ed50000"))
    stranger = Machine(VendorPki.create(elsewhere, now), MockKms.create(now))
    strange = stranger.boot(b'{"name":"x"}', mesh.tds["router"].identity, 0).quote(b"x")
    with pytest.raises(CollateralUnavailable):
        await cache.held(strange)
    await cache.held(quote)
    assert not cache._flights


@pytest.mark.parametrize("damage", [b"", b"\x04\x00", b"\0" * 5000])
async def test_what_is_no_quote_is_refused(cache: CollateralCache, pccs: Pccs, damage: bytes) -> None:
    with pytest.raises(tdx.QuoteMalformed):
        await cache.held(damage)
    assert pccs.fetches == 0
