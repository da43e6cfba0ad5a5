from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path

import pytest

from libs.policy.vault_orders import VaultPart
from services.router.errors import NotFound
from services.router.proof.file import (
    SINCE_VERSION_1,
    SINCE_VERSION_2,
    VERSION_1,
    ReceiptStoreFailed,
    ReceiptStoreUnusable,
)
from services.router.proof.kept_receipts import StoredReceipt
from services.router.proof.kept_usage import USAGE_PAGE, StoredUsage
from services.router.proof.store import ReceiptStore, open_receipt_store


def stored(number: int, *, chat_id: str | None = "chatcmpl-1", tenant_id: str = "t1") -> StoredReceipt:
    return StoredReceipt(
        receipt_id=f"rcpt-{number}",
        chat_id=chat_id,
        tenant_id=tenant_id,
        receipt=b"{}",
        entry=b"entry",
        salt=b"s" * 32,
        entry_id=number.to_bytes(32, "big"),
        issuer_seq=number,
    )


async def test_receipt_outlives_the_process_with_its_acknowledgement(tmp_path: Path) -> None:
    path = tmp_path / "receipts.db"
    async with open_receipt_store(path) as store:
        await store.receipts.put(dataclasses.replace(stored(1), acknowledgement=b"ack"))
    async with open_receipt_store(path) as store:
        assert await store.receipts.find("rcpt-1", "t1") == dataclasses.replace(stored(1), acknowledgement=b"ack")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_receipt_id_wins_over_response_id_and_the_newest_response_wins(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        await store.receipts.put(stored(1))
        await store.receipts.put(stored(2))
        await store.receipts.put(stored(3, chat_id="rcpt-1"))
        assert (await store.receipts.find("chatcmpl-1", "t1")).receipt_id == "rcpt-2"
        assert (await store.receipts.find("rcpt-1", "t1")).receipt_id == "rcpt-1"


async def test_other_tenants_receipt_does_not_exist_nor_shadow_ones_own(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        await store.receipts.put(stored(1))
        await store.receipts.put(stored(2, tenant_id="t2"))
        assert (await store.receipts.find("chatcmpl-1", "t1")).receipt_id == "rcpt-1"
        with pytest.raises(NotFound):
            await store.receipts.find("rcpt-2", "t1")


@pytest.mark.parametrize("identifier", ["", "rcpt-9", "x" * 300, "\udcff", "' OR 1=1 --"])
async def test_unknown_identifier_is_not_found(tmp_path: Path, identifier: str) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        await store.receipts.put(stored(1, chat_id=None))
        with pytest.raises(NotFound):
            await store.receipts.find(identifier, "t1")


async def test_concurrent_calls_lose_nothing(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        async with asyncio.TaskGroup() as tasks:
            for number in range(40):
                tasks.create_task(store.receipts.put(stored(number)))
        for number in range(40):
            assert (await store.receipts.find(f"rcpt-{number}", "t1")).issuer_seq == number


async def test_same_receipt_twice_fails_and_keeps_the_first(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        await store.receipts.put(stored(1))
        with pytest.raises(ReceiptStoreFailed):
            await store.receipts.put(dataclasses.replace(stored(1), receipt=b"other"))
        assert (await store.receipts.find("rcpt-1", "t1")).receipt == b"{}"


async def test_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.write_bytes(b"not a database, but long enough to be taken for one" * 40)
    with pytest.raises(ReceiptStoreUnusable):
        async with open_receipt_store(path):
            pass


async def test_store_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ReceiptStoreUnusable, match="version 99"):
        async with open_receipt_store(path):
            pass


async def test_folder_that_is_missing_is_an_error_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ReceiptStoreFailed):
        async with open_receipt_store(tmp_path / "none" / "r.db"):
            pass


VAULT = b"\x0a" * 16
MARCH, APRIL = 675, 676


def sealed(number: int, vault_id: bytes | None = VAULT, epoch: int | None = MARCH) -> StoredReceipt:
    entry = b"the entry of number %03d, and no other" % number
    return dataclasses.replace(stored(number), entry=entry, vault_id=vault_id, vault_epoch=epoch)


async def test_an_erased_month_or_vault_takes_its_receipts_along_and_no_others(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        for one in (sealed(1), sealed(2, epoch=APRIL), sealed(3, b"\x0b" * 16)):
            await store.receipts.put(one)
        await store.erased.erase(VaultPart(VAULT, MARCH))
        assert await found(store) == [2, 3]
        await store.erased.erase(VaultPart(VAULT, None))
        assert await found(store) == [3]


async def test_a_receipt_that_an_erasure_overtook_is_not_kept(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        await store.erased.erase(VaultPart(VAULT, MARCH))
    async with open_receipt_store(tmp_path / "r.db") as store:
        await store.receipts.put(sealed(1))
        await store.receipts.put(sealed(2, epoch=APRIL))
        assert await found(store) == [2]
        await store.erased.erase(VaultPart(VAULT, None))
        await store.receipts.put(sealed(3, epoch=APRIL))
        assert await found(store) == []


async def found(store: ReceiptStore) -> list[int]:
    numbers = []
    for number in range(1, 5):
        with suppress(NotFound):
            numbers.append((await store.receipts.find(f"rcpt-{number}", "t1")).issuer_seq)
    return numbers


async def test_nothing_of_an_erased_receipt_is_left_in_any_file(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        for number in range(1, 200):
            await store.receipts.put(sealed(number, VAULT if number % 2 else b"\x0b" * 16))
        await store.erased.erase(VaultPart(VAULT, None))
        files = content_of(tmp_path)
    assert b"the entry of number 007" not in files
    assert b"the entry of number 008" in files


def content_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_a_store_of_the_version_before_goes_on_and_what_it_does_not_know_the_vault_of_goes_with_any(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r.db"
    make_version_1(path)
    async with open_receipt_store(path) as store:
        assert (await store.receipts.find("rcpt-1", "t1")).vault_id is None
        assert await store.erased.place() == b""
        await store.receipts.put(sealed(2, b"\x0b" * 16))
        await store.erased.erase(VaultPart(VAULT, MARCH))
        assert await found(store) == [2]


def make_version_1(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{VERSION_1} PRAGMA user_version = 1;")
        columns = "receipt_id, chat_id, tenant_id, receipt, entry, salt, entry_id, issuer_seq"
        values = ("rcpt-1", None, "t1", b"{}", b"entry", b"s", b"i", 1)
        connection.execute(f"INSERT INTO receipts ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608
        connection.commit()


async def test_the_place_in_the_log_outlives_the_process(tmp_path: Path) -> None:
    for token in (b"first", b"second"):
        async with open_receipt_store(tmp_path / "r.db") as store:
            await store.erased.keep_place(token)
        async with open_receipt_store(tmp_path / "r.db") as store:
            assert await store.erased.place() == token


def used(number: int, tenant_id: str = "t1", vault_id: bytes = VAULT, epoch: int = MARCH) -> StoredUsage:
    return StoredUsage(tenant_id, vault_id, epoch, number.to_bytes(32, "big"), b'{"from":%d}' % number)


async def test_usage_is_its_tenants_alone_page_by_page_from_the_newest(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        for number in range(2 * USAGE_PAGE + 1):
            await store.usage.put(used(number))
            await store.usage.put(used(number, "t2", b"\x0b" * 16))
    async with open_receipt_store(tmp_path / "r.db") as store:
        found: list[StoredUsage] = []
        before: int | None = None
        for pages_left in (2, 1, 0):
            page, before = await store.usage.page("t1", before)
            found += page
            assert (before is not None) == (pages_left > 0)
        assert found == [used(number) for number in reversed(range(2 * USAGE_PAGE + 1))]
        assert await store.usage.page("t3") == ([], None)


async def test_usage_goes_with_its_erased_month_or_vault_and_no_other(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        for one in (used(1), used(2, epoch=APRIL), used(3, vault_id=b"\x0b" * 16)):
            await store.usage.put(one)
        await store.erased.erase(VaultPart(VAULT, MARCH))
        await store.usage.put(used(4))
        assert [each.entry_id[-1] for each in (await store.usage.page("t1"))[0]] == [3, 2]
        await store.erased.erase(VaultPart(VAULT, None))
        assert [each.entry_id[-1] for each in (await store.usage.page("t1"))[0]] == [3]


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_store_of_a_version_before_keeps_usage(tmp_path: Path, version: int) -> None:
    path = tmp_path / "r.db"
    make_version_1(path)
    later = (SINCE_VERSION_1, SINCE_VERSION_2)[: version - 1]
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{''.join(later)} PRAGMA user_version = {version};")
    async with open_receipt_store(path) as store:
        await store.usage.put(used(1))
        assert await store.usage.page("t1") == ([used(1)], None)
        assert (await store.receipts.find("rcpt-1", "t1")).receipt == b"{}"
