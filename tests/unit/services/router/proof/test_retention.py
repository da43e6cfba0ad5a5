"""Receipts are kept for a stated time, or as long as there is room; what they rest on, for as long as one cites it."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from libs.aci.receipt_events import UpstreamVerified
from libs.policy.vault_orders import VaultPart
from services.router.errors import NotFound
from services.router.proof.file import SINCE_VERSION_1, SINCE_VERSION_2, VERSION_1, taken
from services.router.proof.kept_receipts import StoredReceipt
from services.router.proof.kept_usage import KeptUsage
from services.router.proof.put_off import WaitingReceipt
from services.router.proof.retention import AGED, CROWDED, Retention
from services.router.proof.settings import ReceiptSettings
from services.router.proof.store import ReceiptStore, open_receipt_store
from tests.fakes.routers import RouterBench, prompt

from .test_store import VAULT, content_of, sealed, stored, used

HOUR = 3600
DAY = 24 * 3600
BEGAN = 1_750_000_000.0
KIB = 1 << 10


@dataclass(slots=True)
class Desk:
    """A store whose clock is set."""

    folder: Path
    now: float
    gone: Counter[str]
    store: ReceiptStore

    async def trim(self, days: int = 30, most_bytes: int = 16 << 30) -> None:
        def let_go(why: str, number: int) -> None:
            self.gone[why] += number

        await Retention(self.store.receipts, ReceiptSettings(5.0, days, most_bytes), let_go, lambda: self.now).trim()

    async def kept(self, *numbers: int) -> list[int]:
        found = []
        for number in numbers:
            with suppress(NotFound):
                found.append((await self.store.receipts.find(f"rcpt-{number}", "t1")).issuer_seq)
        return found

    async def has(self, digest: bytes) -> bool:
        try:
            return bool(await self.store.documents.find(digest))
        except NotFound:
            return False


@asynccontextmanager
async def desk_in(folder: Path) -> AsyncIterator[Desk]:
    desk: Desk | None = None
    async with open_receipt_store(folder / "r.db", clock=lambda: BEGAN if desk is None else desk.now) as store:
        desk = Desk(folder, BEGAN, Counter(), store)
        yield desk


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_in(tmp_path) as desk:
        yield desk


def large(number: int) -> StoredReceipt:
    return dataclasses.replace(stored(number), entry=bytes([number % 251]) * 16 * KIB)


async def test_a_receipt_is_there_for_its_time_and_not_after(desk: Desk) -> None:
    await desk.store.receipts.put(stored(1))
    desk.now += DAY
    await desk.store.receipts.put(stored(2))
    desk.now = BEGAN + 30 * DAY
    await desk.trim()
    assert await desk.kept(1, 2) == [1, 2]
    desk.now += 1
    await desk.trim()
    assert await desk.kept(1, 2) == [2]
    assert desk.gone == {AGED: 1}


async def test_many_go_in_steps_until_none_is_due(desk: Desk) -> None:
    for number in range(450):
        await desk.store.receipts.put(stored(number))
    desk.now += 31 * DAY
    await desk.store.receipts.put(stored(450))
    await desk.trim()
    assert await desk.kept(*range(451)) == [450]
    assert desk.gone == {AGED: 450}


async def test_a_document_stays_as_long_as_a_receipt_cites_it(desk: Desk) -> None:
    first, both, last = (bytes([number]) * 32 for number in range(3))
    await desk.store.receipts.put(stored(1), {first: b"first", both: b"both"})
    desk.now += 10 * DAY
    await desk.store.receipts.put(stored(2), {both: None, last: b"last"})
    desk.now = BEGAN + 31 * DAY
    await desk.trim()
    assert [await desk.has(digest) for digest in (first, both, last)] == [False, True, True]
    desk.now = BEGAN + 41 * DAY
    await desk.trim()
    assert [await desk.has(digest) for digest in (first, both, last)] == [False, False, False]


async def test_a_document_that_nobody_cited_yet_stays_for_a_day_at_least(desk: Desk) -> None:
    digest = b"\x07" * 32
    await desk.store.documents.put(digest, b"document")
    for number in range(3):
        await desk.store.receipts.put(stored(number))
    await desk.trim(most_bytes=16 << 20)
    desk.now += DAY - 1
    await desk.store.receipts.let_go(int(desk.now), 0)
    assert await desk.has(digest)
    desk.now += HOUR + 2
    await desk.store.receipts.let_go(int(desk.now), 0)
    assert not await desk.has(digest)


async def test_a_document_that_is_kept_again_and_again_is_not_written_each_time(tmp_path: Path) -> None:
    """Each commit to disk holds up the receipts of answers, and anybody with one receipt may ask for its proof."""
    digest, log_of_writes = b"\x07" * 32, tmp_path / "r.db-wal"
    async with desk_in(tmp_path) as desk:
        await desk.store.documents.put(digest, b"document")
        written = log_of_writes.stat().st_size
        for _ in range(3):
            desk.now += HOUR / 4
            await desk.store.documents.put(digest, b"document")
        assert log_of_writes.stat().st_size == written
        desk.now += HOUR
        await desk.store.documents.put(digest, b"document")
        assert log_of_writes.stat().st_size > written
        desk.now += DAY - 1
        await desk.store.receipts.let_go(int(desk.now), 0)
        assert await desk.has(digest)


async def test_without_room_the_oldest_go_before_their_time_and_the_file_does_not_grow(tmp_path: Path) -> None:
    limit, sizes = 16 << 20, []
    async with desk_in(tmp_path) as desk:
        for number in range(4000):
            await desk.store.receipts.put(large(number))
            if number % 250 == 249:
                await desk.trim(most_bytes=limit)
                sizes.append((tmp_path / "r.db").stat().st_size)
        kept = await desk.kept(*range(4000))
        assert kept == list(range(kept[0], 4000))
        assert desk.gone == {CROWDED: kept[0]}
        assert 500 <= len(kept) <= limit // (16 * KIB)
    assert max(sizes) < 1.5 * limit, "64 MiB went through it"


async def test_receipts_do_not_go_for_what_lies_beside_them(desk: Desk) -> None:
    """Copies of usage and receipts that wait have bounds of their own."""
    for number in range(700):
        await desk.store.receipts.put(large(number))
    for number in range(800):
        await desk.store.usage.put(dataclasses.replace(used(number), body=bytes(6 * KIB)))
        await desk.store.put_off.put_if_room(WaitingReceipt(f"w-{number}", None, "t1", bytes(3 * KIB)))
    for number in range(4000):
        await desk.store.usage.put(dataclasses.replace(used(number), body=bytes(100 + number % 1500)))
    assert (desk.folder / "r.db").stat().st_size > 24 << 20
    await desk.trim(most_bytes=16 << 20)
    assert await desk.kept(*range(700)) == list(range(700))
    for number in range(700, 1200):
        await desk.store.receipts.put(large(number))
    await desk.trim(most_bytes=16 << 20)
    kept = await desk.kept(*range(1200))
    assert kept == list(range(kept[0], 1200))
    assert 600 <= len(kept) <= 1000


async def test_what_lies_beside_receipts_is_room_for_them_when_it_is_gone(desk: Desk) -> None:
    for number in range(1, 400):
        await desk.store.usage.put(dataclasses.replace(used(number), body=bytes(6 * KIB)))
        store = desk.store.put_off
        await store.put_if_room(WaitingReceipt(f"w-{number}", None, "t1", bytes(3 * KIB)))
    await desk.store.erased.erase(VaultPart(VAULT, None))
    for waiting in await store.oldest(1000):
        await store.settle(waiting)
    assert await desk.store.file.run(lambda file: (taken(file, "usage"), taken(file, "pending"))) == (0, 0)


async def test_copies_of_usage_take_so_much_room_and_the_oldest_go(desk: Desk) -> None:
    kept = KeptUsage(desk.store.file, most_bytes=64 * KIB)
    for number in range(40):
        await kept.put(dataclasses.replace(used(number), body=bytes(6 * KIB)))
    page, _ = await kept.page("t1")
    assert [each.entry_id[-1] for each in page] == [39, 38, 37, 36, 35, 34, 33, 32]


async def test_what_is_due_goes_first_and_only_then_what_there_is_no_room_for(desk: Desk) -> None:
    await desk.store.receipts.put(stored(1))
    desk.now += DAY
    await desk.store.receipts.put(stored(2))
    steps = [await desk.store.receipts.let_go(int(desk.now), 0) for _ in range(3)]
    assert [(step.aged, step.crowded) for step in steps] == [(1, 0), (0, 1), (0, 0)]


async def test_an_erasure_of_many_takes_all_of_them_and_overwrites_them(desk: Desk) -> None:
    for number in range(1, 700):
        await desk.store.receipts.put(sealed(number, VAULT if number % 2 else b"\x0b" * 16))
    await desk.store.erased.erase(VaultPart(VAULT, None))
    assert await desk.kept(*range(1, 700)) == list(range(2, 700, 2))
    files = content_of(desk.folder)
    assert b"the entry of number 699" not in files
    assert b"the entry of number 698" in files


async def test_what_went_for_its_age_is_in_no_file_once_its_vault_is_erased(desk: Desk) -> None:
    await desk.store.receipts.put(sealed(1))
    desk.now += 31 * DAY
    await desk.trim()
    await desk.store.erased.erase(VaultPart(VAULT, None))
    assert b"the entry of number 001" not in content_of(desk.folder)


async def test_a_store_of_the_version_before_keeps_its_receipts_for_their_time_from_now_on(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{VERSION_1} {SINCE_VERSION_1} PRAGMA user_version = 2;")
        columns = "receipt_id, chat_id, tenant_id, receipt, entry, salt, entry_id, issuer_seq"
        for number in (1, 2):
            values = (f"rcpt-{number}", None, "t1", b"{}", b"entry", b"s", b"i%d" % number, number)
            connection.execute(f"INSERT INTO receipts ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608
        connection.execute("INSERT INTO evidence VALUES (?, ?)", (b"\x01" * 32, b"document"))
        connection.commit()
        opened_at = int(connection.execute("SELECT strftime('%s', 'now')").fetchone()[0])
    async with desk_in(tmp_path) as desk:
        for ahead, kept in ((30 * DAY, [1, 2]), (30 * DAY + 60, [])):
            desk.now = opened_at + ahead
            await desk.trim()
            assert await desk.kept(1, 2) == kept
        await desk.store.receipts.put(stored(3))
        await desk.trim()
        assert not await desk.has(b"\x01" * 32)


async def test_the_session_that_a_receipt_cites_is_kept_with_it_whatever_the_registry_forgets(
    bench: RouterBench,
) -> None:
    await bench.run(prompt())
    outcome = bench.only_receipt().upstream
    assert isinstance(outcome, UpstreamVerified)
    document = bench.registry.sessions.pop(bytes.fromhex(outcome.session_id))
    assert await bench.store.documents.find(bytes.fromhex(outcome.session_id)) == document
    assert await bench.foreign.session(outcome.session_id) == document


async def test_a_store_of_the_version_before_has_measured_what_lies_beside_its_receipts(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{VERSION_1} {SINCE_VERSION_1} {SINCE_VERSION_2} PRAGMA user_version = 3;")
        for number in range(10):
            values = ("t1", VAULT, 1, b"i%d" % number, bytes(6 * KIB))
            connection.execute(
                "INSERT INTO usage (tenant_id, vault_id, vault_epoch, entry_id, body) VALUES (?, ?, ?, ?, ?)", values
            )
        connection.commit()
    async with desk_in(tmp_path) as desk:
        assert await desk.store.file.run(lambda file: (taken(file, "usage"), taken(file, "pending"))) == (80 * KIB, 0)


@pytest.mark.parametrize(("name", "value"), [("retain_days", 0), ("retain_bytes", (16 << 20) - 1)])
def test_a_retention_below_the_least_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        ReceiptSettings(**{name: value})
