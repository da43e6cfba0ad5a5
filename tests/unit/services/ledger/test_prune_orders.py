"""What operators order of pruning is in the log once, by their word alone, and about this log alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.events.pruning import PruneMalformed, PruneOrdered, parse_prune
from libs.events.records import parse_entry
from libs.policy.orders import (
    HOLD_VAULT,
    PRUNE_LOG,
    OrderExpired,
    OrderOfAnotherKind,
    OrderSignaturesInsufficient,
    parse_order,
)
from libs.policy.prune_orders import PruneSubjectMalformed
from libs.transparency.leaf import Kind
from services.ledger.storage.prunings import Prunings
from services.ledger.vaults.prune_orders import Allowed, EntriesNotSealed, PruneOfAnotherLog, PruneOrders
from tests.fakes.entry_schema import require_documented
from tests.fakes.joined_mesh import Clock, JoinedMesh

from .conftest import ORIGIN
from .erasing_ledger import APRIL, ErasingLedger, started
from .writers import Keys

FOUR = f"{ORIGIN},4"


class Own:
    """What the ledger says is in its log at once."""

    def __init__(self, ledger: ErasingLedger) -> None:
        self._ledger = ledger

    async def prune_logged(self, said: PruneOrdered) -> None:
        require_documented(Kind.PRUNE, said.body())
        self._ledger.append(Kind.PRUNE, said.body())


@pytest.fixture
async def ledger(empty_log: Path, mesh: JoinedMesh) -> AsyncIterator[ErasingLedger]:
    """Six entries, of which the first four lie in a sealed segment."""
    async with started(empty_log, mesh, Keys(), Clock(APRIL)) as made:
        for number in range(6):
            made.append(Kind.START, {"epoch": number + 1, "build": "00" * 32, "recovered_size": 0})
        yield made


@pytest.fixture
def orders(ledger: ErasingLedger) -> PruneOrders:
    return PruneOrders(lambda: ledger.policy, ledger.store, ledger.growth, Own(ledger), ledger.clock)


async def test_order_is_in_the_log_whole_and_once(ledger: ErasingLedger, orders: PruneOrders) -> None:
    signed = ledger.order(PRUNE_LOG, FOUR)
    assert await orders.allow(signed) == Allowed(4, 6)
    assert await orders.allow(signed) == Allowed(4, 6)
    assert await orders.allow(ledger.order(PRUNE_LOG, f"{ORIGIN},3")) == Allowed(3, 6)
    assert ledger.store.head.size == 7
    said = parse_prune(parse_entry(ledger.store.reader.entry(6).row.body[32:]).body)
    assert (said.min_index, said.policy_version, said.order) == (4, ledger.policy.version, parse_order(signed))


async def test_word_of_too_few_is_none(ledger: ErasingLedger, orders: PruneOrders) -> None:
    with pytest.raises(OrderSignaturesInsufficient):
        await orders.allow(ledger.order(PRUNE_LOG, FOUR, signers=1))
    with pytest.raises(OrderExpired):
        await orders.allow(ledger.order(PRUNE_LOG, FOUR, not_after=int(APRIL) - 1))
    with pytest.raises(OrderOfAnotherKind):
        await orders.allow(ledger.order(HOLD_VAULT, "0a" * 16))
    assert ledger.store.head.size == 6


async def test_order_about_another_log_is_refused(ledger: ErasingLedger, orders: PruneOrders) -> None:
    with pytest.raises(PruneOfAnotherLog):
        await orders.allow(ledger.order(PRUNE_LOG, "mesh.local/ledger/2,4"))
    assert ledger.store.head.size == 6


@pytest.mark.parametrize("subject", ["4", ORIGIN, f"{ORIGIN},0", f"{ORIGIN},04", f"{ORIGIN},-4", f"{ORIGIN},4,4"])
async def test_subject_that_names_no_place_in_a_log_is_refused(
    ledger: ErasingLedger, orders: PruneOrders, subject: str
) -> None:
    with pytest.raises(PruneSubjectMalformed):
        await orders.allow(ledger.order(PRUNE_LOG, subject))


@pytest.mark.parametrize("index", [5, 6, 7, 10**9])
async def test_what_is_not_sealed_cannot_be_pruned(ledger: ErasingLedger, orders: PruneOrders, index: int) -> None:
    with pytest.raises(EntriesNotSealed, match="before 4"):
        await orders.allow(ledger.order(PRUNE_LOG, f"{ORIGIN},{index}"))
    assert ledger.store.head.size == 6


async def test_start_knows_what_the_log_allows(empty_log: Path, mesh: JoinedMesh) -> None:
    async with started(empty_log, mesh, Keys(), Clock(APRIL)) as ledger:
        for number in range(6):
            ledger.append(Kind.START, {"epoch": number + 1, "build": "00" * 32, "recovered_size": 0})
        assert ledger.store.prunings == Prunings()
        await PruneOrders(lambda: ledger.policy, ledger.store, ledger.growth, Own(ledger), ledger.clock).allow(
            ledger.order(PRUNE_LOG, FOUR)
        )
    async with started(empty_log, mesh, Keys(), Clock(APRIL)) as ledger:
        assert ledger.store.prunings == Prunings((4,), (6,))


def test_later_words_only_go_further() -> None:
    prunings = Prunings((4, 9), (10, 20))
    assert [prunings.covering(index) for index in (0, 3, 4, 8)] == [10, 10, 20, 20]
    assert [prunings.entry_for(limit) for limit in (4, 5, 9, 10)] == [10, 20, 20, None]
    assert Prunings().limit == 0


@pytest.mark.parametrize("change", [{"min_index": 0}, {"min_index": True}, {"more": 1}, {"authority": {}}])
def test_body_of_another_form_is_refused(ledger: ErasingLedger, change: dict[str, object]) -> None:
    body = PruneOrdered(4, 1, parse_order(ledger.order(PRUNE_LOG, FOUR))).body()
    assert parse_prune(body).min_index == 4
    with pytest.raises(PruneMalformed):
        parse_prune({**body, **change})
