"""Collateral on disk: a restarted service answers while the PCCS is away, and believes no file that was changed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from libs.tee.collateral import Collateral
from services.attestation.pccs import CollateralUnavailable
from services.devtee.collateral import CollateralShape, make_collateral
from services.devtee.machine import Machine
from tests.fakes.joined_mesh import Clock
from tests.fakes.proxied_pccs import HOUR, Pccs, restarted, serving


async def test_of_two_kept_files_the_newer_is_used(
    pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    """A crash may leave both."""
    cache = await restarted(pccs, clock, tmp_path)
    pccs.change = serving(machine, CollateralShape(int(clock.now) - HOUR, evaluation_number=17))
    older = await cache.collateral(quote)
    (kept,) = files(tmp_path)
    ca, fmspc, _ = kept.name.split(".")
    shape = CollateralShape(int(clock.now), evaluation_number=18, validity_seconds=HOUR)
    newer = Collateral.parse(make_collateral(machine.pki, shape).members())
    digest = hashlib.sha256(newer.encode()).hexdigest()
    (tmp_path / f"{ca}.{fmspc}.{digest}").write_bytes(newer.encode())
    assert older.expires_at() > newer.expires_at()
    again = await restarted(pccs, clock, tmp_path)
    assert await again.collateral(quote) == newer


async def test_of_two_kept_files_that_are_equally_new_the_one_that_lasts_longer_is_used(
    pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    cache = await restarted(pccs, clock, tmp_path)
    pccs.change = serving(machine, CollateralShape(int(clock.now), validity_seconds=HOUR))
    short = await cache.collateral(quote)
    (kept,) = files(tmp_path)
    ca, fmspc, short_digest = kept.name.split(".")
    for first_in_order in (True, False):
        while True:
            # Signatures are random, and so is which of the two files comes first.
            shape = CollateralShape(int(clock.now), validity_seconds=2 * HOUR)
            long = Collateral.parse(make_collateral(machine.pki, shape).members())
            digest = hashlib.sha256(long.encode()).hexdigest()
            if (digest < short_digest) == first_in_order:
                break
        path = tmp_path / f"{ca}.{fmspc}.{digest}"
        path.write_bytes(long.encode())
        again = await restarted(pccs, clock, tmp_path)
        assert await again.collateral(quote) == long != short
        path.unlink()


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_restarted_service_answers_while_the_pccs_is_away(
    pccs: Pccs, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    held = await (await restarted(pccs, clock, tmp_path / "collateral")).held(quote)
    pccs.broken = True
    cache = await restarted(pccs, clock, tmp_path / "collateral")
    assert await cache.collateral(quote) == held.collateral
    assert pccs.fetches == 1
    pccs.broken = False
    clock.now += 25 * HOUR
    await cache.renew()
    assert (await cache.held(quote)).valid_until > held.valid_until
    assert len(files(tmp_path / "collateral")) == 1  # The newer one took its place.
    clock.now = held.valid_until + 40 * 86400
    pccs.broken = True
    with pytest.raises(CollateralUnavailable):
        await (await restarted(pccs, clock, tmp_path / "collateral")).held(quote)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff"])
async def test_kept_collateral_that_is_damaged_or_foreign_is_passed_over(
    pccs: Pccs, quote: bytes, clock: Clock, tmp_path: Path, damage: bytes
) -> None:
    await (await restarted(pccs, clock, tmp_path)).held(quote)
    (kept,) = files(tmp_path)
    kept.write_bytes(damage)
    (tmp_path / "README").write_bytes(b"mine")
    draft = tmp_path / f".{kept.name}.0123456789abcdef"
    draft.write_bytes(b"half")
    pccs.broken = True
    with pytest.raises(CollateralUnavailable):
        await (await restarted(pccs, clock, tmp_path)).held(quote)
    assert (tmp_path / "README").read_bytes() == b"mine"
    assert not draft.exists()


async def test_kept_collateral_that_was_exchanged_is_passed_over(
    pccs: Pccs, machine: Machine, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    await (await restarted(pccs, clock, tmp_path)).held(quote)
    (kept,) = files(tmp_path)
    other = make_collateral(machine.pki, CollateralShape(int(clock.now) - HOUR))
    kept.write_bytes(Collateral.parse(other.members()).encode())
    cache = await restarted(pccs, clock, tmp_path)
    assert not cache._held


async def test_kept_collateral_under_another_platforms_name_is_passed_over(
    pccs: Pccs, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    await (await restarted(pccs, clock, tmp_path)).held(quote)
    (kept,) = files(tmp_path)
    ca, _, digest = kept.name.split(".")
    kept.rename(tmp_path / f"{ca}.000000000000.{digest}")
    cache = await restarted(pccs, clock, tmp_path)
    assert not cache._held


async def test_a_disk_that_fails_costs_only_the_head_start(
    pccs: Pccs, quote: bytes, clock: Clock, tmp_path: Path
) -> None:
    cache = await restarted(pccs, clock, tmp_path / "collateral")
    (tmp_path / "collateral").rmdir()
    (tmp_path / "collateral").write_bytes(b"")
    assert await cache.held(quote) is await cache.held(quote)
