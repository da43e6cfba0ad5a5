"""Collateral never goes back: what revokes something is not exchanged for what came before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from libs.tee.collateral import Collateral
from services.attestation.collateral import CollateralCache
from services.attestation.pccs import CollateralUnavailable
from services.attestation.pccs import Platform as PccsPlatform
from services.devtee.collateral import CollateralShape
from services.devtee.machine import Machine
from services.devtee.pki import VendorPki
from tests.fakes.joined_mesh import Clock
from tests.fakes.proxied_pccs import HOUR, LONGEST_BACKOFF, Pccs, Reply, proxied, quoted, restarted, serving


@pytest.mark.parametrize(("number", "later"), [(16, 0), (17, -1), (16, 10), (18, -10)])
async def test_what_is_held_is_not_exchanged_for_what_is_older(
    cache: CollateralCache,
    pccs: Pccs,
    machine: Machine,
    quote: bytes,
    clock: Clock,
    number: int,
    later: int,
) -> None:
    issued = int(clock.now) - HOUR
    pccs.change = serving(machine, CollateralShape(issued, evaluation_number=17))
    held = await cache.held(quote)
    pccs.change = serving(machine, CollateralShape(issued + later, evaluation_number=number))
    clock.now += 2 * HOUR
    for _ in range(2):
        await cache.renew()
        assert await cache.held(quote) is held
    assert pccs.fetches == 2  # It counts as a failure, so a PCCS that lags is not stormed.
    pccs.change = serving(machine, CollateralShape(issued, evaluation_number=18))
    clock.now += LONGEST_BACKOFF
    await cache.renew()
    assert await cache.held(quote) is not held


async def test_an_older_identity_alone_is_not_taken_either(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes, clock: Clock
) -> None:
    issued = int(clock.now) - HOUR
    pccs.change = serving(machine, CollateralShape(issued))
    held = await cache.held(quote)
    newer, older = serving(machine, CollateralShape(issued + 60)), serving(machine, CollateralShape(issued - 60))
    pccs.change = lambda path, reply: (older if path.endswith("/qe/identity") else newer)(path, reply)
    clock.now += 2 * HOUR
    await cache.renew()
    assert await cache.held(quote) is held


@pytest.mark.parametrize("path", ["/rootcacrl", "/pckcrl"])
async def test_an_older_crl_alone_is_not_taken_either(
    cache: CollateralCache, pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, path: str
) -> None:
    """It would bring back what was revoked since."""
    issued = int(clock.now) - HOUR
    newer = serving(machine, CollateralShape(issued, revoked=frozenset({"pck", "tcb_signing"})))
    older = serving(machine, CollateralShape(issued - 60))
    pccs.change = newer
    held = await cache.held(quote)
    pccs.change = lambda asked, reply: (older if asked.endswith(path) else newer)(asked, reply)
    clock.now += 2 * HOUR
    await cache.renew()
    assert await cache.held(quote) is held


@dataclass(slots=True)
class Roots:
    """One PCCS that serves under the vendor's root, or under another that it made up."""

    pccs: Pccs
    machine: Machine
    clock: Clock
    cache: CollateralCache

    def vendor(self, shape: CollateralShape) -> None:
        self.pccs.change = serving(self.machine, shape)

    def made_up(self, shape: CollateralShape) -> None:
        pki = VendorPki.create(self.machine.pki.platform, int(self.clock.now))
        statements, chains = serving(replace(self.machine, pki=pki), shape), quoted(pki.tcb_chain)

        def change(path: str, reply: Reply) -> Reply:
            chain = quoted(pki.pck_crl_chain) if path.endswith("/pckcrl") else chains
            return replace(statements(path, reply), headers=dict.fromkeys(reply.headers, chain))

        self.pccs.change = change

    async def later(self, quote: bytes) -> Collateral:
        """What is held after the next renewal."""
        self.clock.now += 2 * HOUR
        await self.cache.renew()
        return await self.cache.collateral(quote)


@pytest.fixture
def roots(pccs: Pccs, machine: Machine, clock: Clock, cache: CollateralCache) -> Roots:
    return Roots(pccs, machine, clock, cache)


@pytest.mark.parametrize("count", [1, 10])
async def test_older_statements_do_not_come_back_through_other_roots(roots: Roots, quote: bytes, count: int) -> None:
    issued = int(roots.clock.now)
    roots.vendor(CollateralShape(issued, evaluation_number=17))
    await roots.cache.collateral(quote)
    for _ in range(count):
        roots.made_up(CollateralShape(issued))
        wrong = await roots.later(quote)
        assert wrong.tcb_info_issuer_chain != roots.machine.pki.tcb_chain
    roots.vendor(CollateralShape(issued, evaluation_number=16))
    assert await roots.later(quote) == wrong
    roots.vendor(CollateralShape(issued, evaluation_number=17))
    roots.clock.now += LONGEST_BACKOFF
    assert (await roots.later(quote)).tcb_info_issuer_chain == roots.machine.pki.tcb_chain
    assert [len(remembered) for remembered in roots.cache._newest.values()] == [min(count + 1, 8)]


async def test_older_statements_do_not_come_back_once_another_roots_have_ended(roots: Roots, quote: bytes) -> None:
    issued = int(roots.clock.now)
    roots.vendor(CollateralShape(issued, evaluation_number=17))
    await roots.cache.collateral(quote)
    roots.made_up(CollateralShape(issued, validity_seconds=3 * HOUR))
    await roots.later(quote)
    roots.vendor(CollateralShape(issued, evaluation_number=16))
    with pytest.raises(CollateralUnavailable, match="older TCB info"):
        await roots.later(quote)


async def test_a_root_that_is_seen_late_is_held_to_what_is_held(roots: Roots, quote: bytes) -> None:
    """Although earlier ones took all the places."""
    issued = int(roots.clock.now)
    for _ in range(9):
        roots.made_up(CollateralShape(issued))
        await roots.later(quote)
    roots.vendor(CollateralShape(issued, evaluation_number=17))
    held = await roots.later(quote)
    roots.vendor(CollateralShape(issued, evaluation_number=16))
    assert await roots.later(quote) == held


async def test_what_has_ended_is_no_measure(roots: Roots, quote: bytes) -> None:
    issued = int(roots.clock.now)
    roots.vendor(CollateralShape(issued, evaluation_number=17, validity_seconds=HOUR))
    await roots.cache.collateral(quote)
    roots.vendor(CollateralShape(issued, evaluation_number=16))
    assert '"tcbEvaluationDataNumber":16' in (await roots.later(quote)).tcb_info


async def test_ages_are_remembered_of_so_many_platforms(cache: CollateralCache, quote: bytes) -> None:
    held = await cache.held(quote)
    for number in range(300):
        cache._hold(PccsPlatform(f"{number:012x}", "platform"), held)
    assert len(cache._newest) == len(cache._held) == 256


async def test_statements_under_a_root_that_was_not_the_vendors_do_not_stay(
    pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    """Whoever once answered for the PCCS could else keep the vendor's own statements out for as long as it liked."""
    stranger = replace(machine, pki=VendorPki.create(machine.pki.platform, int(clock.now)))
    async with proxied(stranger, clock) as other:
        wrong = await (await restarted(other, clock, tmp_path)).collateral(quote)
    cache = await restarted(pccs, clock, tmp_path)
    assert await cache.collateral(quote) == wrong
    clock.now += 2 * HOUR
    await cache.renew()
    assert (await cache.collateral(quote)).tcb_info_issuer_chain == machine.pki.tcb_chain
