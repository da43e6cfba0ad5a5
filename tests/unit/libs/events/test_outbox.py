"""The outbox: what survives a crash at any byte, what is refused, what is deleted when."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import MeshError
from libs.events.batches import encode_batch
from libs.events.issuer import Issuer
from libs.events.journal import encode_record, scan
from libs.events.keyset import PreviousIssuer
from libs.events.kinds import Kind
from libs.events.outbox import MAGIC, open_outbox
from libs.events.outbox_items import Acknowledged, Cut, Item, RecordFacts, Rejected, Stored, decode_items, encode_items
from libs.events.vault import VaultKey
from tests.fakes.unsynced_disk import writes_without_sync

TENANT = "cd" * 16
VAULT = VaultKey(b"\x01" * 16, 3, b"\x02" * 32, TENANT)
FIRST, SECOND = b"\x0a" * 32, b"\x0b" * 32


def new_issuer() -> Issuer:
    return Issuer(Ed25519PrivateKey.generate())


def batch_of(issuer: Issuer, count: int = 1, padding: int = 0) -> Stored:
    sealed = [issuer.seal(Kind.RECEIPT, {"padding": "x" * padding}, VAULT) for _ in range(count)]
    records = [one.record for one in sealed]
    message = encode_batch(issuer.id, sealed[0].issuer_seq, records, issuer.key)
    facts = tuple(RecordFacts.of(record, TENANT) for record in records)
    return Stored(issuer.id, sealed[0].issuer_seq, message, facts)


def acknowledged(issuer: Issuer, number: int) -> Acknowledged:
    return Acknowledged(issuer.id, number, 4, bytes(112))


async def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    issuer = new_issuer()
    batches = [batch_of(issuer, 2), batch_of(issuer)]
    async with open_outbox(tmp_path, issuer.id) as outbox:
        assert outbox.previous is None
        for batch in batches:
            await outbox.append(batch)
        await outbox.append(acknowledged(issuer, 1))
    async with open_outbox(tmp_path, SECOND) as outbox:
        assert outbox.earlier == (issuer.id,)
        assert outbox.previous == PreviousIssuer(issuer.id, 3)
        assert outbox.state.unacknowledged(issuer.id) == batches
        assert outbox.state.lowest_awaited(issuer.id) == 2
        assert outbox.state.highest_epoch == 4
        assert [(one.issuer_seq, one.acknowledged) for one in outbox.state.uncut(issuer.id)] == [
            (1, True),
            (2, False),
            (3, False),
        ]


async def test_every_item_survives_its_encoding() -> None:
    issuer = new_issuer()
    items: list[Item] = [
        batch_of(issuer, 2),
        acknowledged(issuer, 1),
        Rejected(issuer.id, 2, "QUARANTINED_BODY"),
        Cut(issuer.id, 1),
    ]
    assert list(decode_items(encode_items(items))) == items


async def test_a_finished_file_is_deleted_and_its_issuer_still_named_as_previous(tmp_path: Path) -> None:
    issuer = new_issuer()
    async with open_outbox(tmp_path, issuer.id) as outbox:
        await outbox.append(batch_of(issuer, 2))
        outbox.append(acknowledged(issuer, 1))
        outbox.append(Cut(issuer.id, 1))
        await outbox.append(Rejected(issuer.id, 2, "QUARANTINED_BODY"))
    for successor in (FIRST, SECOND):
        async with open_outbox(tmp_path, successor) as outbox:
            assert outbox.previous == PreviousIssuer(issuer.id, 2)
            assert len(outbox.parts) == 1


async def test_a_record_that_is_uncut_keeps_its_file(tmp_path: Path) -> None:
    issuer = new_issuer()
    async with open_outbox(tmp_path, issuer.id) as outbox:
        await outbox.append(batch_of(issuer))
        await outbox.append(acknowledged(issuer, 1))
    async with open_outbox(tmp_path, FIRST) as outbox:
        assert len(outbox.parts) == 2
        await outbox.append(Cut(issuer.id, 1))
    async with open_outbox(tmp_path, SECOND) as outbox:
        assert len(outbox.parts) == 1


async def test_a_cut_holds_up_nothing_and_goes_with_what_comes_next(tmp_path: Path) -> None:
    def records() -> int:
        return len(scan(MAGIC, outbox.parts[-1].read_bytes()).payloads)

    issuer = new_issuer()
    async with open_outbox(tmp_path, issuer.id) as outbox:
        await outbox.append(batch_of(issuer, 2))
        before = records()
        cut = outbox.append(Cut(issuer.id, 1))
        for _ in range(3):
            await asyncio.sleep(0)
        await outbox.append(acknowledged(issuer, 2))
        assert cut.done()
        assert records() == before + 1
        await outbox.append(Cut(issuer.id, 2))
        assert records() == before + 2


async def test_full_files_rotate_and_go_oldest_first(tmp_path: Path) -> None:
    issuer = new_issuer()
    async with open_outbox(tmp_path, issuer.id, part_bytes=2000) as outbox:
        for _ in range(5):
            await outbox.append(batch_of(issuer, padding=1000))
        assert len(outbox.parts) >= 5
        for number in (5, 4, 3, 2):
            outbox.append(acknowledged(issuer, number))
            await outbox.append(Cut(issuer.id, number))
        before = len(outbox.parts)
        outbox.append(acknowledged(issuer, 1))
        await outbox.append(Cut(issuer.id, 1))
        assert before >= 5
    async with open_outbox(tmp_path, SECOND) as outbox:
        assert outbox.previous == PreviousIssuer(issuer.id, 5)
        assert len(outbox.parts) == 1


async def test_a_full_outbox_says_so_and_still_takes_answers(tmp_path: Path) -> None:
    issuer = new_issuer()
    async with open_outbox(tmp_path, issuer.id, max_bytes=1500) as outbox:
        outbox.require_room(1000)
        await outbox.append(batch_of(issuer, padding=800))
        with pytest.raises(MeshError) as refusal:
            outbox.require_room(1000)
        assert refusal.value.reason == "OUTBOX_FULL"
        await outbox.append(acknowledged(issuer, 1))


async def test_the_reserve_is_left_to_what_is_essential(tmp_path: Path) -> None:
    issuer = new_issuer()
    async with open_outbox(tmp_path, issuer.id, max_bytes=3000, reserve_bytes=1500) as outbox:
        outbox.require_room(1000)
        await outbox.append(batch_of(issuer, padding=800))
        with pytest.raises(MeshError) as refusal:
            outbox.require_room(1000)
        assert refusal.value.reason == "OUTBOX_FULL"
        outbox.require_room(1000, essential=True)
        await outbox.append(batch_of(issuer, padding=800))
        with pytest.raises(MeshError) as refusal:
            outbox.require_room(1000, essential=True)
        assert refusal.value.reason == "OUTBOX_FULL"


async def test_two_processes_cannot_share_an_outbox(tmp_path: Path) -> None:
    async with open_outbox(tmp_path, FIRST):
        with pytest.raises(MeshError) as refusal:
            async with open_outbox(tmp_path, SECOND):
                pass
    assert refusal.value.reason == "OUTBOX_IN_USE"


async def test_a_failed_write_ends_the_outbox_and_whoever_waits(tmp_path: Path) -> None:
    issuer = new_issuer()
    seen: list[str] = []

    async def write_to_a_closed_file() -> None:
        async with open_outbox(tmp_path, issuer.id) as outbox:
            outbox.close_file()
            waiting = outbox.append(batch_of(issuer))
            try:
                await waiting
            finally:
                seen.append(type(waiting.exception()).__name__)

    with pytest.raises(ExceptionGroup) as ended:
        await write_to_a_closed_file()
    assert seen == ["OutboxFailed"]
    assert ended.value.subgroup(lambda error: isinstance(error, MeshError) and error.reason == "OUTBOX_FAILED")


async def test_a_batch_that_could_not_be_made_durable_is_not_stored(tmp_path: Path) -> None:
    issuer = new_issuer()
    seen: list[str] = []

    async def store_on_a_disk_that_does_not_sync() -> None:
        async with open_outbox(tmp_path, issuer.id) as outbox:
            with writes_without_sync(outbox.parts[-1]):
                waiting = outbox.append(batch_of(issuer))
                try:
                    await waiting
                finally:
                    seen.append(type(waiting.exception()).__name__)

    with pytest.raises(ExceptionGroup):
        await store_on_a_disk_that_does_not_sync()
    assert seen == ["OutboxFailed"]


async def written(folder: Path) -> tuple[Path, list[Stored]]:
    issuer = new_issuer()
    batches = [batch_of(issuer) for _ in range(3)]
    async with open_outbox(folder, issuer.id) as outbox:
        for batch in batches:
            await outbox.append(batch)
        (path,) = outbox.parts
    return path, batches


def lay_out(source: Path, folder: Path, data: bytes) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / source.name).write_bytes(data)


async def reopened(source: Path, folder: Path, data: bytes) -> list[Stored]:
    """Open an outbox that holds `data` in one file, and return what it still has to send."""
    lay_out(source, folder, data)
    async with open_outbox(folder, SECOND) as outbox:
        return [batch for issuer in outbox.earlier for batch in outbox.state.unacknowledged(issuer)]


async def test_torn_at_any_byte_leaves_exactly_the_whole_records(tmp_path: Path) -> None:
    path, batches = await written(tmp_path / "whole")
    data = path.read_bytes()
    ends = [len(encode_record(MAGIC, payload)) for payload in scan(MAGIC, data).payloads]
    starts = [sum(ends[:count]) for count in range(len(ends) + 1)]
    for length in range(len(data)):
        whole = max(count for count, start in enumerate(starts) if start <= length)
        assert await reopened(path, tmp_path / "torn", data[:length]) == batches[: max(whole - 1, 0)]


async def test_a_damaged_byte_before_the_last_record_is_refused(tmp_path: Path) -> None:
    path, _ = await written(tmp_path / "whole")
    data = path.read_bytes()
    payloads = scan(MAGIC, data).payloads
    last = len(data) - len(encode_record(MAGIC, payloads[-1]))
    for position in range(0, last, 3):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(MeshError) as refusal:
            await reopened(path, tmp_path / "damaged", bytes(damaged))
        assert refusal.value.reason == "OUTBOX_DAMAGED"


async def test_a_torn_tail_is_cut_from_the_file(tmp_path: Path) -> None:
    path, batches = await written(tmp_path)
    os.truncate(path, path.stat().st_size - 1)
    async with open_outbox(tmp_path, SECOND):
        assert scan(MAGIC, path.read_bytes()).length == path.stat().st_size
    assert len(batches) == 3


async def test_a_torn_file_that_its_own_process_left_behind_is_refused(tmp_path: Path) -> None:
    issuer = new_issuer()
    async with open_outbox(tmp_path, issuer.id, part_bytes=600) as outbox:
        await outbox.append(batch_of(issuer))
        await outbox.append(batch_of(issuer))
        older = outbox.parts[0]
        assert len(outbox.parts) == 2
    os.truncate(older, older.stat().st_size - 1)
    with pytest.raises(MeshError) as refusal:
        async with open_outbox(tmp_path, SECOND):
            pass
    assert refusal.value.reason == "OUTBOX_DAMAGED"


async def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    issuer = new_issuer()
    async with open_outbox(tmp_path, issuer.id, part_bytes=600) as outbox:
        for _ in range(3):
            await outbox.append(batch_of(issuer))
        middle = outbox.parts[1]
    middle.unlink()
    with pytest.raises(MeshError) as refusal:
        async with open_outbox(tmp_path, SECOND):
            pass
    assert refusal.value.reason == "OUTBOX_DAMAGED"
