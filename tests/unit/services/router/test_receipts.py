from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
import stat
from pathlib import Path

import pytest

from services.router.errors import NotFound
from services.router.receipts import (
    ReceiptStoreFailed,
    ReceiptStoreUnusable,
    StoredReceipt,
    open_receipt_store,
)


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
        await store.put(stored(1))
        await store.acknowledge(stored(1).entry_id, b"ack")
    async with open_receipt_store(path) as store:
        assert await store.find("rcpt-1", "t1") == dataclasses.replace(stored(1), acknowledgement=b"ack")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_receipt_id_wins_over_response_id_and_the_newest_response_wins(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        await store.put(stored(1))
        await store.put(stored(2))
        await store.put(stored(3, chat_id="rcpt-1"))
        assert (await store.find("chatcmpl-1", "t1")).receipt_id == "rcpt-2"
        assert (await store.find("rcpt-1", "t1")).receipt_id == "rcpt-1"


async def test_other_tenants_receipt_does_not_exist_nor_shadow_ones_own(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        await store.put(stored(1))
        await store.put(stored(2, tenant_id="t2"))
        assert (await store.find("chatcmpl-1", "t1")).receipt_id == "rcpt-1"
        with pytest.raises(NotFound):
            await store.find("rcpt-2", "t1")


@pytest.mark.parametrize("identifier", ["", "rcpt-9", "x" * 300, "\udcff", "' OR 1=1 --"])
async def test_unknown_identifier_is_not_found(tmp_path: Path, identifier: str) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        await store.put(stored(1, chat_id=None))
        with pytest.raises(NotFound):
            await store.find(identifier, "t1")


async def test_only_the_newest_are_retained(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db", retained=2) as store:
        for number in range(1, 5):
            await store.put(stored(number))
        for number in (1, 2):
            with pytest.raises(NotFound):
                await store.find(f"rcpt-{number}", "t1")
        assert (await store.find("rcpt-3", "t1")).issuer_seq == 3
        await store.acknowledge(stored(1).entry_id, b"ack")


async def test_concurrent_calls_lose_nothing(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        async with asyncio.TaskGroup() as tasks:
            for number in range(40):
                tasks.create_task(store.put(stored(number)))
        for number in range(40):
            assert (await store.find(f"rcpt-{number}", "t1")).issuer_seq == number


async def test_same_receipt_twice_fails_and_keeps_the_first(tmp_path: Path) -> None:
    async with open_receipt_store(tmp_path / "r.db") as store:
        await store.put(stored(1))
        with pytest.raises(ReceiptStoreFailed):
            await store.put(dataclasses.replace(stored(1), receipt=b"other"))
        assert (await store.find("rcpt-1", "t1")).receipt == b"{}"


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
