"""What policy says of age: months go when they are too old, not sooner, not by a clock alone, not under a hold."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from libs.events.erasure import Authority, ErasureDone, ErasureOrdered
from libs.identity.freshness import PolicyStale
from libs.policy.document import Policy
from libs.policy.orders import ERASE_VAULT, HOLD_VAULT, RELEASE_VAULT, parse_order
from libs.policy.vault_orders import VaultPart, month_of
from libs.transparency.leaf import Kind
from services.ledger.vaults.retention import Retention
from tests.fakes.joined_mesh import Clock, JoinedMesh

from .erasing_ledger import APRIL, OTHER, TENANT, ErasingLedger, started
from .writers import Keys

MONTH_SECONDS = 31 * 86400


@pytest.fixture
async def ledger(empty_log: Path, mesh: JoinedMesh) -> AsyncIterator[ErasingLedger]:
    async with started(empty_log, mesh, Keys(), Clock(APRIL)) as made, made.running():
        yield made


def keeping(ledger: ErasingLedger, months: int | None) -> Retention:
    ledger.policy = dataclasses.replace(ledger.policy, retention_months=months)
    return retention(ledger, lambda: ledger.policy)


def retention(ledger: ErasingLedger, policy: Callable[[], Policy]) -> Retention:
    def is_logged(entry: bytes) -> bool:
        return ledger.store.index.find(entry) is not None

    return Retention(policy, ledger.vaults, ledger.erasures, ledger.orders, is_logged, ledger.clock)


async def live_through(ledger: ErasingLedger, tenant: str, months: int) -> VaultPart:
    """A vault with an entry in each of so many months, from April on; the clock stays in the last."""
    for number in range(months):
        vault = await ledger.vaults.open(tenant)
        ledger.append(Kind.RECEIPT, {"n": number}, vault)
        ledger.clock.now += MONTH_SECONDS if number + 1 < months else 0
    return VaultPart(vault.vault_id, None)


async def months_of(ledger: ErasingLedger, part: VaultPart) -> list[str]:
    """What is left of a vault once everything ordered is done."""
    for erasure in ledger.erasures.all():
        await ledger.erasing.until_done(erasure.part)
    vault = ledger.vaults.of(part.vault_id)
    return [] if vault is None else sorted(map(month_of, vault.epochs))


async def test_months_that_are_too_old_go_and_say_under_which_policy(ledger: ErasingLedger) -> None:
    part = await live_through(ledger, TENANT, 4)
    await keeping(ledger, 1).age_out()
    assert await months_of(ledger, part) == ["2026-06", "2026-07"]
    orders = [said for said in ledger.said() if isinstance(said, ErasureOrdered)]
    assert [month_of(said.part.epoch or 0) for said in orders] == ["2026-04", "2026-05"]
    assert {(said.authority.policy_version, said.authority.retention_months) for said in orders} == {(1, 1)}
    assert [said.key for said in ledger.said() if isinstance(said, ErasureDone)] == ["kept", "kept"]
    before = len(ledger.said())
    await keeping(ledger, 1).age_out()
    assert len(ledger.said()) == before


@pytest.mark.parametrize(("months", "left"), [(None, 4), (3, 4), (2, 3)])
async def test_nothing_goes_before_its_time(ledger: ErasingLedger, months: int | None, left: int) -> None:
    part = await live_through(ledger, TENANT, 4)
    await keeping(ledger, months).age_out()
    assert len(await months_of(ledger, part)) == left


async def test_a_clock_that_no_fresh_policy_bears_out_erases_nothing(ledger: ErasingLedger) -> None:
    part = await live_through(ledger, TENANT, 2)
    fresh = keeping(ledger, 1)

    def stale() -> Policy:
        raise PolicyStale("no policy statement from the KMS for long")

    ledger.clock.now += 100 * MONTH_SECONDS
    await retention(ledger, stale).age_out()
    assert len(await months_of(ledger, part)) == 2
    await fresh.age_out()
    assert await months_of(ledger, part) == []


async def test_a_held_vault_is_not_aged_out_until_it_is_released(ledger: ErasingLedger) -> None:
    held, other = await live_through(ledger, TENANT, 4), await live_through(ledger, OTHER, 1)
    await ledger.orders.set_hold(ledger.order(HOLD_VAULT, held.subject))
    ledger.clock.now += 2 * MONTH_SECONDS
    await keeping(ledger, 1).age_out()
    assert len(await months_of(ledger, held)) == 4
    assert await months_of(ledger, other) == []
    await ledger.orders.set_hold(ledger.order(RELEASE_VAULT, held.subject))
    await keeping(ledger, 1).age_out()
    assert await months_of(ledger, held) == []


async def test_a_month_is_ordered_once_while_the_stream_is_away(ledger: ErasingLedger) -> None:
    """Each order stays in the outbox until it is logged: one an hour would fill it."""
    part = await live_through(ledger, TENANT, 3)
    ledger.own.away = True
    aging = keeping(ledger, 1)
    for _ in range(3):
        await aging.age_out()
    assert len(ledger.own.waiting) == 1
    ledger.own.come_back()
    assert await months_of(ledger, part) == ["2026-05", "2026-06"]


async def test_an_order_that_a_hold_overtook_on_its_way_is_given_again_after_the_hold(ledger: ErasingLedger) -> None:
    part = await live_through(ledger, TENANT, 3)
    ledger.own.away = True
    aging = keeping(ledger, 1)
    await aging.age_out()
    ledger.own.away = False
    await ledger.orders.set_hold(ledger.order(HOLD_VAULT, part.subject))
    ledger.own.come_back()
    await ledger.orders.set_hold(ledger.order(RELEASE_VAULT, part.subject))
    assert len(await months_of(ledger, part)) == 3
    await aging.age_out()
    assert await months_of(ledger, part) == ["2026-05", "2026-06"]


async def test_what_is_erased_whole_is_not_erased_again_by_age(ledger: ErasingLedger) -> None:
    part = await live_through(ledger, TENANT, 4)
    ledger.trees.signing.clear()
    order = parse_order(ledger.order(ERASE_VAULT, part.subject))
    await ledger.own.erasure(ErasureOrdered(part, 4, Authority(1, order)))
    await keeping(ledger, 1).age_out()
    assert ledger.said() == [ErasureOrdered(part, 4, Authority(1, order))]
