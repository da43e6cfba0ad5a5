"""Erasures are carried out whole, in their order, whatever dies in between; and nothing is erased that is held."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from libs.errors import Code, MeshError
from libs.events.erasure import Authority, ErasureDone, ErasureOrdered, HoldChanged
from libs.policy.orders import ERASE_VAULT, HOLD_VAULT, RELEASE_VAULT
from libs.policy.vault_orders import VaultPart, month_of
from libs.transparency.leaf import Kind
from services.ledger.storage.keyring import NAME
from services.ledger.storage.reading import LogReader, StoredEntry
from services.ledger.storage.store import LogStore
from services.ledger.vaults.closed import ClosedVaults
from tests.fakes.joined_mesh import Clock, JoinedMesh

from .erasing_ledger import APRIL, OTHER, TENANT, ErasingLedger, started
from .writers import Keys


class Away(MeshError):
    code = Code.UNAVAILABLE
    reason = "AWAY"


class Refused(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "ORDER_EXPIRED"


class Place:
    """A ledger's folder, and what outlives its process."""

    def __init__(self, folder: Path, mesh: JoinedMesh) -> None:
        self.folder, self.mesh = folder, mesh
        self.keys, self.clock = Keys(), Clock(APRIL)

    @asynccontextmanager
    async def start(self) -> AsyncIterator[ErasingLedger]:
        async with started(self.folder, self.mesh, self.keys, self.clock) as ledger:
            yield ledger


@pytest.fixture
def place(empty_log: Path, mesh: JoinedMesh) -> Place:
    return Place(empty_log, mesh)


async def vault_with_entries(ledger: ErasingLedger, tenant: str = TENANT) -> VaultPart:
    vault = await ledger.vaults.open(tenant)
    for number in range(3):
        ledger.append(Kind.RECEIPT, {"n": number}, vault)
    return VaultPart(vault.vault_id, None)


def steps(ledger: ErasingLedger) -> list[str]:
    return [str(said.body()["step"]) for said in ledger.said()]


async def test_an_erasure_is_not_done_while_a_member_that_is_away_has_the_shares(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        ledger.members.there.clear()
        ordering = asyncio.create_task(ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject)))
        await ledger.members.asked.wait()
        # What can be done without it is done: here they are gone, and the KMS gives its half to nobody.
        assert ledger.vaults.of(part.vault_id) is None
        assert len(place.keys.retired) == 1
        assert steps(ledger) == ["ordered"]
        ordering.cancel()
    async with place.start() as ledger:
        ledger.members.there.clear()
        async with ledger.running():
            await ledger.members.asked.wait()
            assert steps(ledger) == ["ordered"]
            ledger.members.there.set()
            await ledger.erasing.until_done(part)
            assert steps(ledger) == ["ordered", "done"]


async def test_an_erasure_is_ordered_then_done_and_the_log_says_under_whose_word(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        order = ledger.order(ERASE_VAULT, part.subject)
        erased = await ledger.orders.erase(order)
        ordered, done = ledger.said()
        assert isinstance(ordered, ErasureOrdered)
        assert isinstance(done, ErasureDone)
        assert ordered.authority.order is not None
        assert (ordered.authority.order.document, ordered.authority.policy_version) == (order, 1)
        assert (ordered.last_seq, done.last_seq, done.key) == (3, 3, "retired")
        assert (erased.part, erased.ordered_index, erased.done_index, erased.said) == (part, 3, 4, done)
        assert done.checkpoint_size > erased.ordered_index
        assert place.keys.retired == [order]
        assert ledger.vaults.of(part.vault_id) is None
        closed = ClosedVaults(ledger.store, ledger.growth)
        assert await closed.closed_by(list(ledger.store.reader.entries(0, 5))) == [3, 3, 3, None, None]
        months = [{(stored.row.vault_epoch, stored.row.vault_id)} for stored in ledger.store.reader.entries(0, 5)]
        assert await closed.are_open(months) == [False, False, False, True, True]
        assert await ledger.orders.erase(order) == erased


class NotingReader(LogReader):
    """Notes what it is asked for, and in which threads; answers when it may."""

    def __init__(self, store: LogStore) -> None:
        super().__init__(store.directory, store.description.origin, store.index)
        self.asked: list[int] = []
        self.threads: set[int] = set()
        self.began, self.may_answer = threading.Event(), threading.Event()

    def entry(self, index: int) -> StoredEntry:
        self.asked.append(index)
        self.threads.add(threading.get_ident())
        self.began.set()
        assert self.may_answer.wait(30)
        return super().entry(index)


async def test_what_closed_vaults_is_not_read_on_the_event_loop(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        await ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject))
        entries = list(ledger.store.reader.entries(0, 3))
        ledger.store.reader = reader = NotingReader(ledger.store)
        reader.may_answer.set()
        assert await ClosedVaults(ledger.store, ledger.growth).closed_by(entries) == [3, 3, 3]
    assert reader.asked == [3, 4]
    assert threading.get_ident() not in reader.threads


async def test_an_erasure_is_taken_in_once_though_who_asked_goes_away(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        await ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject))
        entries = list(ledger.store.reader.entries(0, 3))
        ledger.store.reader = reader = NotingReader(ledger.store)
        closed = ClosedVaults(ledger.store, ledger.growth)
        asking = asyncio.create_task(closed.closed_by(entries))
        assert await asyncio.to_thread(reader.began.wait, 30)
        asking.cancel()
        await asyncio.wait([asking])
        asking = asyncio.create_task(closed.closed_by(entries))
        await asyncio.sleep(0)
        await asyncio.to_thread(list)  # A turn of the threads, for what must not happen in one.
        reader.may_answer.set()
        assert await asking == [3, 3, 3]
    assert reader.asked == [3, 4]


async def test_an_order_that_comes_while_earlier_ones_are_read_counts_for_what_is_given_out(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part, other = await vault_with_entries(ledger), await vault_with_entries(ledger, OTHER)
        await ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject))
        (stored,) = ledger.store.reader.entries(3, 4)
        ledger.store.reader = reader = NotingReader(ledger.store)
        asking = asyncio.create_task(
            ClosedVaults(ledger.store, ledger.growth).are_open([{(stored.row.vault_epoch, stored.row.vault_id)}])
        )
        assert await asyncio.to_thread(reader.began.wait, 30)
        ledger.append(Kind.ERASURE, ErasureOrdered(other, 3, Authority(1, retention_months=1)).body())
        reader.may_answer.set()
        assert await asking == [False]


async def test_shares_stay_until_a_signed_tree_covers_the_order(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        ledger.trees.signing.clear()
        erasing = asyncio.ensure_future(ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject)))
        await ledger.trees.asked.wait()
        assert ledger.trees.size == ledger.store.head.size  # The order is the last leaf.
        assert ledger.vaults.of(part.vault_id) is not None
        assert steps(ledger) == ["ordered"]
        with pytest.raises(MeshError, match="closed"):
            await ledger.vaults.open(TENANT)
        ledger.trees.signing.set()
        assert (await erasing).said.key == "retired"


async def test_a_ledger_that_ends_before_the_tree_is_signed_goes_on_at_its_next_start(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        ledger.trees.signing.clear()
        erasing = asyncio.ensure_future(ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject)))
        await ledger.trees.asked.wait()
        erasing.cancel()
    await finishes(place, part)


async def test_one_that_ends_while_the_kms_is_asked_goes_on_too(place: Place) -> None:
    asked = asyncio.Event()

    def away(name: str) -> None:
        asked.set()
        raise Away(name)

    async with place.start() as ledger:
        part = await vault_with_entries(ledger)
        place.keys.fail = away
        async with ledger.running():
            erasing = asyncio.ensure_future(ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject)))
            await asked.wait()
            assert ledger.vaults.of(part.vault_id) is None
            erasing.cancel()
    place.keys.fail = lambda name: None
    await finishes(place, part)


async def finishes(place: Place, part: VaultPart) -> None:
    """The next start carries it out without being asked; the one after finds nothing to do."""
    for _ in range(2):
        async with place.start() as ledger, ledger.running():
            assert (await ledger.erasing.until_done(part)).said.key == "retired"
            assert steps(ledger) == ["ordered", "done"]
            assert ledger.vaults.of(part.vault_id) is None
    assert len(place.keys.retired) == 1


async def test_a_keyring_that_was_put_back_loses_the_shares_again(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        older = (place.folder / NAME).read_bytes()
        await ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject))
    (place.folder / NAME).write_bytes(older)
    async with place.start() as ledger:
        assert ledger.vaults.of(part.vault_id) is not None
        async with ledger.running():
            other = await vault_with_entries(ledger, OTHER)
            await ledger.orders.erase(ledger.order(ERASE_VAULT, other.subject))
            assert ledger.vaults.all() == ()


async def test_what_the_kms_refuses_is_said_and_the_shares_are_gone_all_the_same(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)

        def refused(name: str) -> None:
            raise Refused(name)

        place.keys.fail = refused
        erased = await ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject))
        assert (erased.said.key, ledger.vaults.of(part.vault_id)) == ("ORDER_EXPIRED", None)


async def test_one_that_waits_for_the_kms_holds_up_no_other(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        whole, other = await vault_with_entries(ledger), await vault_with_entries(ledger, OTHER)
        place.clock.now += 31 * 86400
        asked = asyncio.Event()

        def away(name: str) -> None:
            asked.set()
            raise Away(name)

        place.keys.fail = away
        waiting = asyncio.ensure_future(ledger.orders.erase(ledger.order(ERASE_VAULT, whole.subject)))
        await asked.wait()
        april = (await ledger.orders.erase(ledger.order(ERASE_VAULT, f"{other.subject},2026-04"))).part.epoch
        assert month_of(april or 0) == "2026-04"
        waiting.cancel()


async def test_that_it_is_done_is_said_once_the_outbox_has_room(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        ledger.trees.signing.clear()
        erasing = asyncio.ensure_future(ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject)))
        await ledger.trees.asked.wait()
        ledger.own.full = 2
        ledger.trees.signing.set()
        while not erasing.done():
            ledger.append(Kind.POLICY, {})
            await asyncio.sleep(0)
        assert (await erasing).said.key == "retired"


async def test_a_month_is_erased_alone_and_its_vault_lives_on(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        whole = await vault_with_entries(ledger)
        place.clock.now += 31 * 86400
        may = await ledger.vaults.open(TENANT)
        erased = await ledger.orders.erase(ledger.order(ERASE_VAULT, f"{whole.subject},2026-04"))
        assert (erased.said.key, place.keys.retired) == ("kept", [])
        vault = ledger.vaults.of(whole.vault_id)
        assert vault is not None
        assert list(vault.epochs) == [may.epoch]
        assert await ledger.vaults.open(TENANT) == may


@pytest.mark.parametrize(
    ("month", "reason"),
    [(",2026-04", "EPOCH_NOT_OVER"), (",2026-05", "EPOCH_NOT_OVER"), (",2026-03", "VAULT_EPOCH_UNKNOWN")],
)
async def test_a_month_that_goes_on_or_never_was_is_not_erased(place: Place, month: str, reason: str) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        assert await refusal(ledger, ERASE_VAULT, part.subject + month) == reason
        assert steps(ledger) == []


async def refusal(ledger: ErasingLedger, action: str, subject: str, **changes: int) -> str:
    signed = ledger.order(action, subject, **changes)
    with pytest.raises(MeshError) as refused:
        await (ledger.orders.erase(signed) if action == ERASE_VAULT else ledger.orders.set_hold(signed))
    return refused.value.reason


@pytest.mark.parametrize("action", [ERASE_VAULT, HOLD_VAULT, RELEASE_VAULT])
async def test_an_order_that_is_not_one_changes_nothing(place: Place, action: str) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        assert await refusal(ledger, action, part.subject, signers=1) == "ORDER_SIGNATURES_INSUFFICIENT"
        assert await refusal(ledger, action, part.subject, not_after=int(APRIL)) == "ORDER_EXPIRED"
        assert await refusal(ledger, action, "77" * 16) == "VAULT_UNKNOWN"
        assert steps(ledger) == []
        assert ledger.vaults.of(part.vault_id) is not None


async def test_a_held_vault_is_not_erased_until_it_is_released(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        hold = await ledger.orders.set_hold(ledger.order(HOLD_VAULT, part.subject, not_after=int(APRIL) + 1))
        assert (hold.vault_id, hold.held, hold.index) == (part.vault_id, True, 3)
        place.clock.now += 31 * 86400
        for subject in (part.subject, f"{part.subject},2026-04"):
            assert await refusal(ledger, ERASE_VAULT, subject) == "VAULT_HELD"
    async with place.start() as ledger, ledger.running():
        assert await refusal(ledger, ERASE_VAULT, part.subject) == "VAULT_HELD"
        assert not (await ledger.orders.set_hold(ledger.order(RELEASE_VAULT, part.subject))).held
        await ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject))
        assert steps(ledger) == ["held", "released", "ordered", "done"]
        assert all(isinstance(said, HoldChanged) for said in ledger.said()[:2])


async def test_an_order_about_a_hold_counts_once(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        first, release = ledger.order(HOLD_VAULT, part.subject), ledger.order(RELEASE_VAULT, part.subject)
        held = await ledger.orders.set_hold(first)
        assert await ledger.orders.set_hold(first) == held
        await ledger.orders.set_hold(release)
        again = ledger.order(HOLD_VAULT, part.subject, not_after=2**33 + 1)
        await ledger.orders.set_hold(again)
        for signers in (2, 3):
            assert await refusal(ledger, RELEASE_VAULT, part.subject, signers=signers) == "ORDER_SPENT"
        assert ledger.erasures.is_held(part.vault_id)
        assert steps(ledger) == ["held", "released", "held"]


async def test_what_is_not_held_is_not_released_and_what_is_closed_not_held(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        assert await refusal(ledger, RELEASE_VAULT, part.subject) == "VAULT_NOT_HELD"
        await ledger.orders.erase(ledger.order(ERASE_VAULT, part.subject))
        assert await refusal(ledger, HOLD_VAULT, part.subject) == "VAULT_ERASED"


async def test_a_hold_that_the_log_has_first_stops_an_erasure_that_was_under_way(place: Place) -> None:
    async with place.start() as ledger, ledger.running():
        part = await vault_with_entries(ledger)
        ledger.own.away = True
        assert await refusal(ledger, ERASE_VAULT, part.subject) == "LEDGER_UNAVAILABLE"
        ledger.own.away = False
        await ledger.orders.set_hold(ledger.order(HOLD_VAULT, part.subject))
        # What the outbox still had arrives behind the hold.
        ledger.own.come_back()
        ledger.append(Kind.POLICY, {})
        assert not ledger.erasures.outstanding()
        assert ledger.vaults.of(part.vault_id) is not None
