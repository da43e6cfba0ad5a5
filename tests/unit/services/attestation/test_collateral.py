"""Collateral against a real PCCS endpoint: fetched once, served while valid, never stormed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
from aiohttp import web

from services.attestation.collateral import CollateralCache
from services.attestation.pccs import CollateralUnavailable
from services.devtee.collateral import CollateralShape, make_collateral
from services.devtee.machine import Machine
from tests.fakes.joined_mesh import Clock
from tests.fakes.proxied_pccs import HOUR, LONGEST_BACKOFF, Pccs, only


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


async def test_failures_in_a_row_are_further_and_further_apart(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    pccs.broken = True
    asked_at = []
    for _ in range(2 * LONGEST_BACKOFF * 4):
        before = pccs.fetches
        with pytest.raises(CollateralUnavailable):
            await cache.held(quote)
        if pccs.fetches > before:
            asked_at.append(clock.now)
        clock.now += 1
    gaps = [later - earlier for earlier, later in pairwise(asked_at)]
    # Half of the doubled wait is jitter, and the clock here moves by whole seconds.
    for count, gap in enumerate(gaps):
        longest = min(2 * 2**count, LONGEST_BACKOFF)
        assert longest / 2 <= gap <= longest + 1
    clock.now -= 10_000  # A clock that was set back does not make it last.
    pccs.broken = False
    await cache.held(quote)


async def test_collateral_is_renewed_long_before_it_ends(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    clock.now += HOUR - 1
    await cache.renew()
    assert await cache.held(quote) is held
    clock.now += 25 * HOUR
    await cache.renew()
    renewed = await cache.held(quote)
    assert renewed.valid_until > held.valid_until
    assert pccs.fetches == 2


async def test_what_is_valid_is_served_at_once_while_the_pccs_is_slow(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    pccs.asked.clear()
    pccs.go_on.clear()
    clock.now += 2 * HOUR
    renewing = asyncio.create_task(cache.renew())
    await pccs.asked.wait()
    assert await cache.held(quote) is held
    pccs.go_on.set()
    await renewing
    assert await cache.held(quote) is not held


async def test_what_is_still_valid_is_used_while_the_pccs_is_away_and_no_longer(
    cache: CollateralCache, pccs: Pccs, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    pccs.broken = True
    clock.now = held.valid_until - 1
    await cache.renew()
    await cache.renew()
    assert await cache.held(quote) is held
    assert pccs.fetches == 2
    clock.now = held.valid_until
    for _ in range(2):
        with pytest.raises(CollateralUnavailable):
            await cache.held(quote)
        await cache.renew()


async def test_a_pccs_that_does_not_answer_is_not_waited_for(pccs: Pccs, quote: bytes) -> None:
    pccs.go_on.clear()
    with pytest.raises(CollateralUnavailable):
        await CollateralCache(pccs.url, 0.1).held(quote)


async def test_a_pccs_that_never_ends_its_answer_is_not_waited_for(quote: bytes) -> None:
    stop = asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a")
        await stop.wait()
        return response

    application = web.Application()
    application.router.add_get("/{path:.*}", drip)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with pytest.raises(CollateralUnavailable):
            await CollateralCache(f"http://127.0.0.1:{runner.addresses[0][1]}", 0.2).held(quote)
    finally:
        stop.set()
        await runner.cleanup()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nobody.invalid", "ftp://127.0.0.1", "no url"])
async def test_a_pccs_that_is_not_there_is_a_failure(url: str, quote: bytes) -> None:
    with pytest.raises(CollateralUnavailable):
        await CollateralCache(url, 5).held(quote)


async def test_the_root_crl_may_come_from_elsewhere(pccs: Pccs, quote: bytes, machine: Machine, clock: Clock) -> None:
    """The vendor's own service does not hand it out."""
    pccs.change = only("/rootcacrl", lambda reply: replace(reply, status=404))
    with pytest.raises(CollateralUnavailable):
        await CollateralCache(pccs.url, 10, clock).held(quote)
    crl = make_collateral(machine.pki, CollateralShape(int(clock.now))).root_ca_crl
    async with serving_bytes(crl) as elsewhere:
        cache = CollateralCache(pccs.url, 10, clock, root_crl_url=f"{elsewhere}/root.der")
        assert (await cache.collateral(quote)).root_ca_crl == crl.hex()


@asynccontextmanager
async def serving_bytes(data: bytes) -> AsyncIterator[str]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=data)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
