"""Platforms that nobody knows take no room from those that are held."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from libs.tee import tdx
from services.attestation.collateral import CollateralCache, _Flight
from services.attestation.pccs import CollateralUnavailable
from services.attestation.pccs import Platform as PccsPlatform
from services.devtee.pki import VendorPki
from services.devtee.platform import Platform
from services.devtee.quotes import TdReport, make_quote
from tests.fakes.joined_mesh import Clock, JoinedMesh
from tests.fakes.proxied_pccs import HOUR, Pccs


async def test_platforms_that_nobody_knows_leave_no_room_taken(
    cache: CollateralCache, mesh: JoinedMesh, quote: bytes
) -> None:
    now = int(Clock().now)
    elsewhere = replace(Platform.random(), fmspc=bytes.fromhex("00a06ed50000"))
    stranger = replace(mesh.machine, pki=VendorPki.create(elsewhere, now))
    strange = stranger.boot(b'{"name":"x"}', mesh.tds["router"].identity, 0).quote(b"x")
    with pytest.raises(CollateralUnavailable):
        await cache.held(strange)
    await cache.held(quote)
    assert not cache._flights


def forged(number: int) -> bytes:
    """A quote that names a platform of its maker's liking."""
    elsewhere = replace(Platform.random(), fmspc=number.to_bytes(6, "big"))
    return make_quote(VendorPki.create(elsewhere, int(time.time())), TdReport(report_data=bytes(64)))


async def test_forged_platforms_leave_those_that_are_held_alone(
    pccs: Pccs, cache: CollateralCache, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    pccs.go_on.clear()
    crowd = [asyncio.create_task(cache.held(forged(number))) for number in range(300)]
    await pccs.fetched(1 + 32)
    assert await cache.held(quote) is held
    clock.now += 2 * HOUR
    renewing = asyncio.create_task(cache.renew())
    await pccs.fetched(1 + 32 + 1)
    pccs.go_on.set()
    await renewing
    assert await cache.held(quote) is not held
    outcomes = await asyncio.gather(*crowd, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {CollateralUnavailable}
    assert not cache._flights
    assert len(cache._failures) == 256


async def test_a_crowd_of_forged_platforms_waits_and_an_honest_one_is_served_after_them(
    pccs: Pccs, cache: CollateralCache, quote: bytes
) -> None:
    pccs.go_on.clear()
    crowd = [asyncio.create_task(cache.held(forged(number))) for number in range(300)]
    await pccs.fetched(32)
    honest = asyncio.create_task(cache.held(quote))
    pccs.go_on.set()
    assert (await honest).valid_until > 0
    await asyncio.gather(*crowd, return_exceptions=True)


async def test_more_platforms_than_can_be_waited_for_are_refused_unless_held(
    pccs: Pccs, cache: CollateralCache, quote: bytes, clock: Clock
) -> None:
    held = await cache.held(quote)
    cache._flights.update({PccsPlatform(f"{number:012x}", "platform"): _Flight() for number in range(1024)})
    with pytest.raises(CollateralUnavailable, match="too many"):
        await cache.held(forged(1 << 20))
    clock.now += 2 * HOUR
    await cache.renew()
    assert await cache.held(quote) is not held


async def test_forged_platforms_do_not_make_a_failed_renewal_forgotten(
    pccs: Pccs, cache: CollateralCache, quote: bytes, clock: Clock
) -> None:
    await cache.held(quote)
    pccs.broken = True
    clock.now += 2 * HOUR
    await cache.renew()
    for number in range(257):
        with pytest.raises(CollateralUnavailable):
            await cache.held(forged(number))
    asked = pccs.fetches
    await cache.renew()
    with pytest.raises(CollateralUnavailable):
        await cache.held(forged(256))
    assert pccs.fetches == asked
    with pytest.raises(CollateralUnavailable):
        await cache.held(forged(0))  # The one that was forgotten is the oldest.
    assert pccs.fetches == asked + 1


@pytest.mark.parametrize("damage", [b"", b"\x04\x00", b"\0" * 5000])
async def test_what_is_no_quote_is_refused(cache: CollateralCache, pccs: Pccs, damage: bytes) -> None:
    with pytest.raises(tdx.QuoteMalformed):
        await cache.held(damage)
    assert pccs.fetches == 0
