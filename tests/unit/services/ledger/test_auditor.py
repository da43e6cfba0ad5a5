"""The auditor: signs only what the files hold and what continues what was signed; a real process holds its key."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from libs.transparency import checkpoint, cose_receipt, cosignature, merkle
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cose_receipt import CoseReceipt
from libs.transparency.note import VerifierKey
from services.ledger.auditor import Auditor, NoteNotSigned, RootDiffers, SizeBelowSigned, SizeNotCommitted
from services.ledger.checkpoints.auditing import AuditorGone, AuditorRefused, Checkpoints, NoCheckpoint, open_auditor
from services.ledger.growth import Growth
from services.ledger.storage import records_log, segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.recovery import CHECKPOINT, CHECKPOINT_WITNESSED, CHECKPOINTS_LOG
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.segments import Geometry
from services.ledger.storage.store import LogStore

from .conftest import (
    DESCRIPTION,
    KEY,
    ORIGIN,
    SMALL,
    SOURCE,
    candidate,
    fill,
    open_store,
    sequencer,
    sign_receipts,
    sign_tree,
)


def auditor_of(directory: Path) -> Auditor:
    return Auditor(directory, ORIGIN, sign_tree, sign_receipts, SMALL)


def root_at(directory: Path, size: int) -> bytes:
    with open_store(directory) as store:
        return store.index.tree.root(size)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def test_it_signs_what_it_has_read_itself_and_keeps_every_note(two_segments: Path) -> None:
    auditor = auditor_of(two_segments)
    notes = [auditor.checkpoint(size, root_at(two_segments, size)) for size in (1, 4, 5, 6, 6)]
    verifier = VerifierKey(ORIGIN, KEY.public_key().public_bytes_raw())
    for size, note in zip((1, 4, 5, 6, 6), notes, strict=True):
        assert checkpoint.verify(note, verifier) == Checkpoint(ORIGIN, size, root_at(two_segments, size))
    stored = records_log.read_end(two_segments / CHECKPOINTS_LOG, records_log.CHECKPOINTS)
    assert list(stored.records) == notes
    assert (two_segments / CHECKPOINT).read_bytes() == notes[-1]


def test_it_keeps_its_own_notes_with_their_witnesses_lines(two_segments: Path) -> None:
    auditor = auditor_of(two_segments)
    first, second = (auditor.checkpoint(size, root_at(two_segments, size)) for size in (4, 6))
    tree = checkpoint.parse(first)
    cosigned = cosignature.attach(first, [cosignature.cosign(tree, "witness.example", KEY, 7)])
    auditor.witnessed(cosigned)
    stored = records_log.read_end(two_segments / CHECKPOINTS_LOG, records_log.CHECKPOINTS)
    assert list(stored.records) == [first, second, cosigned]
    assert (two_segments / CHECKPOINT_WITNESSED).read_bytes() == cosigned
    assert (two_segments / CHECKPOINT).read_bytes() == second
    # What was cosigned is a floor like any note, and the newest of all still is the highest.
    with open_store(two_segments) as store:
        assert store.report.floor == 6


def test_it_signs_receipts_in_its_own_trees_alone(two_segments: Path) -> None:
    auditor = auditor_of(two_segments)
    root = root_at(two_segments, 6)
    auditor.checkpoint(6, root)
    with open_store(two_segments) as store:
        leaf_data = store.reader.entry(2).row.leaf_data
        path = tuple(merkle.inclusion_path(store.index.tree, 2, 6))
    receipt = CoseReceipt(ORIGIN, 6, 2, path, auditor.receipts(6)).encode()
    assert cose_receipt.verify(receipt, leaf_data, VerifierKey(ORIGIN, KEY.public_key().public_bytes_raw())) == root
    with pytest.raises(NoteNotSigned):
        auditor.receipts(5)


def test_it_keeps_no_note_that_it_did_not_sign(two_segments: Path) -> None:
    auditor = auditor_of(two_segments)
    note = auditor.checkpoint(6, root_at(two_segments, 6))
    other = checkpoint.sign(Checkpoint(ORIGIN, 6, b"\x01" * 32), KEY)
    for foreign in (other, note.replace(b"\n6\n", b"\n7\n")):
        with pytest.raises(NoteNotSigned):
            auditor.witnessed(foreign)
    assert not (two_segments / CHECKPOINT_WITNESSED).exists()


def test_it_follows_a_log_that_grows(two_segments: Path) -> None:
    auditor = auditor_of(two_segments)
    auditor.checkpoint(6, root_at(two_segments, 6))
    fill(two_segments, [[7], [8], [9]])
    assert checkpoint.parse(auditor.checkpoint(9, root_at(two_segments, 9))).size == 9


def test_it_refuses_another_root_than_the_files(two_segments: Path) -> None:
    with pytest.raises(RootDiffers):
        auditor_of(two_segments).checkpoint(6, merkle.EMPTY_ROOT)
    assert not (two_segments / CHECKPOINT).exists()


def test_it_refuses_a_smaller_size_than_was_signed_also_after_a_restart(two_segments: Path) -> None:
    root = root_at(two_segments, 5)
    auditor_of(two_segments).checkpoint(6, root_at(two_segments, 6))
    with pytest.raises(SizeBelowSigned):
        auditor_of(two_segments).checkpoint(5, root)


def test_it_refuses_another_tree_of_the_size_that_was_signed(two_segments: Path) -> None:
    lie = checkpoint.sign(Checkpoint(ORIGIN, 5, b"\x01" * 32), KEY)
    log = records_log.RecordsLog(two_segments / CHECKPOINTS_LOG, records_log.CHECKPOINTS, 0)
    log.append([lie])
    log.close()
    with open_store_unchecked(two_segments) as root, pytest.raises(RootDiffers):
        auditor_of(two_segments).checkpoint(6, root)


def test_it_refuses_a_size_between_commits(two_segments: Path) -> None:
    with pytest.raises(SizeNotCommitted):
        auditor_of(two_segments).checkpoint(3, merkle.EMPTY_ROOT)


def test_it_refuses_a_size_that_is_not_in_the_files(two_segments: Path) -> None:
    with pytest.raises(LogDamaged):
        auditor_of(two_segments).checkpoint(7, merkle.EMPTY_ROOT)


def test_it_refuses_after_any_byte_of_a_commit_was_flipped(two_segments: Path) -> None:
    root = root_at(two_segments, 6)
    path = two_segments / SEGMENTS / segments.file_name(4)
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    for at in range(segments.HEADER_SIZE, end):
        flip(path, at)
        with pytest.raises(LogDamaged):
            auditor_of(two_segments).checkpoint(6, root)
        path.write_bytes(data)
    auditor_of(two_segments).checkpoint(6, root)


@pytest.mark.parametrize("signed", [4, 5, 6])
def test_it_begins_with_the_last_segment_that_leads_to_what_was_signed(two_segments: Path, signed: int) -> None:
    """The first segment is not read again: damage there does not show. It is the scrub's to find."""
    auditor_of(two_segments).checkpoint(signed, root_at(two_segments, signed))
    root = root_at(two_segments, 6)
    flip(two_segments / SEGMENTS / segments.file_name(0), segments.HEADER_SIZE + 200)
    assert checkpoint.parse(auditor_of(two_segments).checkpoint(6, root)).size == 6


def test_it_reads_all_where_nothing_was_signed_in_the_last_segment(two_segments: Path) -> None:
    auditor_of(two_segments).checkpoint(1, root_at(two_segments, 1))
    root = root_at(two_segments, 6)
    flip(two_segments / SEGMENTS / segments.file_name(0), segments.HEADER_SIZE + 200)
    with pytest.raises(LogDamaged):
        auditor_of(two_segments).checkpoint(6, root)


@pytest.mark.parametrize("signed", [4, 5])
def test_it_believes_no_header_that_does_not_lead_to_what_was_signed(two_segments: Path, signed: int) -> None:
    """Of another history: peaks and all that follows agree with each other, but not with the note."""
    root = root_at(two_segments, 6)
    auditor_of(two_segments).checkpoint(signed, root_at(two_segments, signed))
    other = two_segments.with_name("other")
    LogStore.create(other, DESCRIPTION)
    fill(other, [[1], [2, 3, 8], [5], [6]])
    name = segments.file_name(4)
    shutil.copyfile(other / SEGMENTS / name, two_segments / SEGMENTS / name)
    with pytest.raises(LogDamaged, match=name):
        auditor_of(two_segments).checkpoint(6, root)
    with pytest.raises(LogDamaged, match=name):
        auditor_of(two_segments).checkpoint(6, root_at(other, 6))


class open_store_unchecked:  # noqa: N801 - a context manager
    """The root of the files, though a note beside them lies."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> bytes:
        notes = self._directory / CHECKPOINTS_LOG
        hidden = notes.read_bytes()
        notes.unlink()
        root = root_at(self._directory, 6)
        notes.write_bytes(hidden)
        return root

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def large_blocks(empty_log: Path) -> Path:
    """A log as the real process reads it: the geometry of production."""
    with open_store(empty_log, Geometry(zeros_ahead=300)) as store:
        writer = sequencer(store)
        for number in (1, 2, 3):
            writer.append([candidate(number)], SOURCE, number, number)
    return empty_log


def production_root(directory: Path) -> bytes:
    with open_store(directory, Geometry(zeros_ahead=300)) as store:
        return store.head.root()


async def test_the_process_signs_with_a_key_born_in_it(large_blocks: Path) -> None:
    root = production_root(large_blocks)
    async with open_auditor(large_blocks, ORIGIN) as first:
        signed = await first.sign(3, root)
    async with open_auditor(large_blocks, ORIGIN) as second:
        assert second.checkpoint_key != first.checkpoint_key
        again = await second.sign(3, root)
    for tree, key in ((signed, first.checkpoint_key), (again, second.checkpoint_key)):
        assert checkpoint.verify(tree.note, VerifierKey(ORIGIN, key)) == Checkpoint(ORIGIN, 3, root)


async def test_the_process_refuses_and_says_why(large_blocks: Path) -> None:
    path = large_blocks / SEGMENTS / segments.file_name(0)
    root = production_root(large_blocks)
    async with open_auditor(large_blocks, ORIGIN) as auditor:
        with pytest.raises(AuditorRefused, match="ROOT_DIFFERS"):
            await auditor.sign(3, bytes(32))
        assert (await auditor.sign(3, root)).size == 3
        with pytest.raises(AuditorRefused, match="SIZE_BELOW_SIGNED"):
            await auditor.sign(2, root)
    flip(path, segments.HEADER_SIZE + 200)
    async with open_auditor(large_blocks, ORIGIN) as auditor:
        with pytest.raises(AuditorRefused, match="LOG_DAMAGED") as refused:
            await auditor.sign(3, root)
    assert refused.value.exit_status == 3


async def test_a_caller_who_gives_up_leaves_its_answer_to_nobody_else(large_blocks: Path) -> None:
    root = production_root(large_blocks)
    async with open_auditor(large_blocks, ORIGIN) as auditor:
        await auditor.sign(3, root)
        leaving = asyncio.create_task(auditor.sign_receipts(3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (await auditor.sign(3, root)).size == 3


async def test_a_process_that_was_killed_is_noticed(large_blocks: Path) -> None:
    async with open_auditor(large_blocks, ORIGIN) as auditor:
        os.kill(auditor.pid, signal.SIGKILL)
        with pytest.raises(AuditorGone):
            await auditor.sign(3, bytes(32))


async def test_a_process_that_was_killed_is_noticed_while_nothing_is_to_be_signed(large_blocks: Path) -> None:
    async with open_auditor(large_blocks, ORIGIN) as auditor, asyncio.timeout(20):
        os.kill(auditor.pid, signal.SIGKILL)
        with pytest.raises(AuditorGone):
            await auditor.watch()


async def test_a_log_that_grew_is_signed_after_its_floor_is_durable(large_blocks: Path) -> None:
    synced: asyncio.Queue[int] = asyncio.Queue()

    async def sync() -> None:
        synced.put_nowait(growth.size)

    async def synced_size() -> int:
        async with asyncio.timeout(100):
            return await synced.get()

    growth = Growth(3, production_root(large_blocks))
    with open_store(large_blocks, Geometry(zeros_ahead=300)) as store:
        writer = sequencer(store)
        async with open_auditor(large_blocks, ORIGIN) as auditor, asyncio.TaskGroup() as tasks:
            checkpoints = Checkpoints(auditor, growth, sync, 0.01)
            with pytest.raises(NoCheckpoint):
                _ = checkpoints.newest
            keeping = tasks.create_task(checkpoints.keep())
            for size in (4, 5):
                # The floor of the next tree is made durable only once the tree before it is signed.
                assert await synced_size() == size - 1
                commit = writer.append([candidate(size)], SOURCE, size, size)[-1]
                growth.reach(commit.size, commit.root)
            assert await synced_size() == 5
            keeping.cancel()
    assert checkpoint.parse(checkpoints.note()).size == checkpoints.newest.size == 4
    assert checkpoint.parse(checkpoints.of_size(3)).size == 3
    assert checkpoints.of_size(2) == b""
