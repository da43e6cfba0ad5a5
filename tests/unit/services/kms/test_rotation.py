from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from libs.policy.orders import RETIRE_KEY, Order, SignedOrder
from libs.policy.releases import KeyRelease
from services.kms.access import Access
from services.kms.book import KeyBook
from services.kms.changes import Change
from services.kms.currency import Currency
from services.kms.decisions import Decisions
from services.kms.rotation import Rotation
from services.kms.unlogged import Unlogged
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore
from tests.fakes.running_kms import DecisionLog

KMS = "spiffe://mesh.test/kms/1"
AGING = "environment/agent"
DAY = 86400
RULE = KeyRelease("models/*", frozenset({"node"}))


@dataclass(frozen=True, slots=True)
class Bench:
    clock: Clock
    book: KeyBook
    log: DecisionLog
    rotation: Rotation


@pytest.fixture
def bench(mesh: JoinedMesh, kms: KmsCore) -> Bench:
    clock, log, currency = Clock(), DecisionLog(), Currency()
    currency.heard()
    book = KeyBook(mesh.folder, kms.keyring.state_key, clock)
    decisions = Decisions(log)
    access = Access(book, kms.policy, decisions, currency)
    return Bench(clock, book, log, Rotation(KMS, book, access, kms.policy, Unlogged(book, decisions), currency, clock))


async def test_a_key_is_rotated_when_policy_holds_it_to_be_too_old(bench: Bench) -> None:
    await bench.book.note_use(AGING, RULE)
    await bench.book.note_use("models/a", RULE)
    bench.clock.now += 30 * DAY - 1
    await bench.rotation.rotate_old()
    assert bench.book.newest(AGING) == 1
    bench.clock.now += 1
    for _ in range(2):  # The new epoch is young.
        await bench.rotation.rotate_old()
        assert bench.book.newest(AGING) == 2
    bench.clock.now += 400 * DAY
    await bench.rotation.rotate_old()
    assert (bench.book.newest(AGING), bench.book.newest("models/a")) == (3, 1)
    assert [(body["name"], body["epoch"], body["cause"]) for _, body in bench.log.entries] == [
        (AGING, 2, "age"),
        (AGING, 3, "age"),
    ]


async def test_a_key_that_cannot_be_rotated_holds_up_no_other(bench: Bench) -> None:
    await bench.book.note_use(AGING, RULE)
    await bench.book.change(Change("environment/a", None, 0, KMS, "order:1", 1, b"{}"))
    bench.clock.now += 30 * DAY
    bench.log.away = True
    await bench.rotation.rotate_old()
    assert bench.book.newest(AGING) == 2
    assert [change.name for change in bench.book.pages.unlogged] == ["environment/a", AGING]


async def test_two_who_rotate_or_retire_at_once_both_succeed_and_it_happens_once(
    mesh: JoinedMesh, bench: Bench
) -> None:
    await asyncio.gather(*(bench.rotation.rotate("models/a", 2, f"operator/{number}") for number in range(3)))
    order = SignedOrder(Order(TRUST_DOMAIN, RETIRE_KEY, "models/b", 2**33))
    for operator in mesh.operators[:2]:
        order = order.signed_by(operator)
    await asyncio.gather(*(bench.rotation.retire(order.document, "operator") for _ in range(3)))
    assert bench.log.decisions == ["rotated models/a", "retired models/b"]
    assert bench.book.newest("models/a") == 2
