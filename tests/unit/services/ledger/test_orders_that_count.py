"""What is ordered is answered once a majority of the members holds the entry that says so, however often it is asked.

A writer that is about to be deposed has judged and written entries that no other member has, and that will be lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from teemesh.ledger.v1 import ledger_pb2 as pb

from libs.events.publish import LedgerUnavailable
from libs.policy.orders import ERASE_VAULT, GIVE_TAG_KEY, HOLD_VAULT, PRUNE_LOG, RELEASE_VAULT
from libs.policy.vault_orders import TagKeyGift
from libs.rpc.calls import Context
from libs.transparency.leaf import Kind
from services.ledger.growth import LogBehind
from services.ledger.serving.servicer import Ledger, LedgerServicer, Reading
from services.ledger.vaults.closed import ClosedVaults
from services.ledger.vaults.orders import TagKey
from services.ledger.vaults.prune_orders import PruneOrders
from tests.fakes.joined_mesh import Clock, JoinedMesh

from .conftest import ORIGIN
from .erasing_ledger import APRIL, OTHER, TENANT, ErasingLedger, started
from .test_prune_orders import Own
from .writers import Keys

CALL = cast(Context, None)
"""Nothing here asks who calls."""
RECEIVER = b"\x07" * 32

T = TypeVar("T")


@pytest.fixture
async def ledger(empty_log: Path, mesh: JoinedMesh) -> AsyncIterator[ErasingLedger]:
    async with started(empty_log, mesh, Keys(), Clock(APRIL)) as ledger, ledger.running():
        yield ledger


async def answered_once_it_counts(ledger: ErasingLedger, ask: Callable[[], Awaitable[T]]) -> T:
    """Ask while nobody else holds what is written, again and again, and once more when a majority does."""
    size = ledger.store.head.size
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await ask()
    assert ledger.store.head.size == size
    waiting = asyncio.ensure_future(ask())
    ledger.hold()
    return await waiting


async def test_a_tag_key_stays_here_while_no_majority_holds_who_was_given_it(ledger: ErasingLedger) -> None:
    vault = await ledger.vaults.open(TENANT)
    signed = ledger.order(GIVE_TAG_KEY, TagKeyGift(vault.vault_id, RECEIVER).subject)

    async def ask() -> TagKey:
        return await ledger.orders.give_tag_key(signed, RECEIVER)

    ledger.is_held = False
    with pytest.raises(LedgerUnavailable):
        await ask()
    given = await answered_once_it_counts(ledger, ask)
    assert ledger.store.reader.entry(given.index).leaf.kind is Kind.ERASURE


async def test_a_tag_key_is_not_given_once_the_vault_was_closed_meanwhile(ledger: ErasingLedger) -> None:
    vault = await ledger.vaults.open(TENANT)
    signed = ledger.order(GIVE_TAG_KEY, TagKeyGift(vault.vault_id, RECEIVER).subject)
    ledger.is_held = False
    with pytest.raises(LedgerUnavailable):
        await ledger.orders.give_tag_key(signed, RECEIVER)
    waiting = asyncio.ensure_future(ledger.orders.give_tag_key(signed, RECEIVER))
    await asyncio.sleep(0)
    with pytest.raises(LedgerUnavailable):
        await ledger.orders.erase(ledger.order(ERASE_VAULT, vault.vault_id.hex()))
    ledger.hold()
    [refused] = await asyncio.gather(waiting, return_exceptions=True)
    assert getattr(refused, "reason", "") == "VAULT_ERASED"


async def test_nobody_is_told_of_a_hold_that_no_majority_holds(ledger: ErasingLedger) -> None:
    vault = await ledger.vaults.open(TENANT)
    signed = ledger.order(HOLD_VAULT, vault.vault_id.hex())
    ledger.is_held = False
    with pytest.raises(LedgerUnavailable):
        await ledger.orders.set_hold(signed)
    assert (await answered_once_it_counts(ledger, lambda: ledger.orders.set_hold(signed))).held


def face_of(ledger: ErasingLedger) -> LedgerServicer:
    """What a writer serves of its vaults."""
    nothing = cast(Any, None)
    closed = ClosedVaults(ledger.store, ledger.growth)
    reading = Reading(ledger.growth, nothing, nothing, ledger.store.reader, nothing, closed, nothing, nothing)
    servicer = LedgerServicer()
    servicer.begin(Ledger(ledger.vaults, nothing, ledger.orders, nothing, reading))
    return servicer


async def test_nobody_is_shown_what_no_majority_holds_of_a_vault(ledger: ErasingLedger) -> None:
    vault = await ledger.vaults.open(TENANT)
    face, asked = face_of(ledger), pb.GetVaultRequest(tenant_id=TENANT)
    ledger.is_held = False
    with pytest.raises(LedgerUnavailable):
        await ledger.orders.set_hold(ledger.order(HOLD_VAULT, vault.vault_id.hex()))
    assert not (await face.GetVault(asked, CALL)).held
    ledger.hold()
    assert (await face.GetVault(asked, CALL)).held
    ledger.is_held = False
    with pytest.raises(LedgerUnavailable):
        await ledger.orders.set_hold(ledger.order(RELEASE_VAULT, vault.vault_id.hex()))
    with pytest.raises(LedgerUnavailable):
        await ledger.orders.erase(ledger.order(ERASE_VAULT, vault.vault_id.hex()))
    shown = await face.GetVault(asked, CALL)
    assert (shown.held, shown.closed) == (True, False)
    ledger.trees.signing.clear()
    ledger.hold()
    shown = await face.GetVault(asked, CALL)
    assert (shown.held, shown.closed) == (False, True)


async def test_a_writer_that_another_may_have_replaced_says_nothing_of_vaults(ledger: ErasingLedger) -> None:
    vault = await ledger.vaults.open(TENANT)
    face = face_of(ledger)
    ledger.growth.is_all = lambda: False
    size = ledger.store.head.size
    for asking in (
        face.GetVault(pb.GetVaultRequest(tenant_id=TENANT), CALL),
        face.GetVault(pb.GetVaultRequest(tenant_id=OTHER), CALL),
        face.SetHold(pb.SetHoldRequest(signed_order=ledger.order(HOLD_VAULT, vault.vault_id.hex())), CALL),
        face.SetHold(pb.SetHoldRequest(signed_order=ledger.order(HOLD_VAULT, "00" * 16)), CALL),
        face.EraseVault(pb.EraseVaultRequest(signed_order=ledger.order(ERASE_VAULT, "00" * 16)), CALL),
    ):
        with pytest.raises(LogBehind):
            await asking
    assert ledger.store.head.size == size


async def test_nobody_is_told_that_a_vault_is_erased_by_what_no_majority_holds(ledger: ErasingLedger) -> None:
    vault = await ledger.vaults.open(TENANT)
    signed = ledger.order(ERASE_VAULT, vault.vault_id.hex())
    ledger.trees.signing.clear()
    first = asyncio.ensure_future(ledger.orders.erase(signed))
    await ledger.trees.asked.wait()
    ledger.is_held = False
    ledger.trees.signing.set()
    await ledger.own.is_done.wait()
    erased = await answered_once_it_counts(ledger, lambda: ledger.orders.erase(signed))
    assert erased == await first


async def test_nobody_is_told_that_the_log_may_be_pruned_by_what_no_majority_holds(
    empty_log: Path, mesh: JoinedMesh
) -> None:
    async with started(empty_log, mesh, Keys(), Clock(APRIL)) as ledger:
        for number in range(6):
            ledger.append(Kind.START, {"epoch": number + 1, "build": "00" * 32, "recovered_size": 0})
        orders = PruneOrders(lambda: ledger.policy, ledger.store, ledger.growth, Own(ledger), ledger.clock)
        signed = ledger.order(PRUNE_LOG, f"{ORIGIN},4")
        ledger.is_held = False
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await orders.allow(signed)
        assert (await answered_once_it_counts(ledger, lambda: orders.allow(signed))).index == 6
