"""What is pruned is gone from the files and from nowhere else; and nothing that went otherwise passes for pruned."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from libs.audit.log.findings import Status
from libs.audit.log.reading import Question, Reading, read_log
from libs.events.erasure import Authority, ErasureDone, ErasureOrdered, HoldChanged
from libs.policy.orders import HOLD_VAULT, RELEASE_VAULT
from libs.policy.vault_orders import VaultPart
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from libs.transparency.merkle import inclusion_path, leaf_hash, verify_inclusion
from services.cli.ledger.files import LogFolder
from services.ledger.auditor import Auditor
from services.ledger.intake.sequencer import Candidate
from services.ledger.pruning import Archive, Outcome, PruneNotOrdered, SegmentNotArchived, prune
from services.ledger.replication.frame_files import FrameFiles, FrameName, FramesPruned
from services.ledger.serving.wire import wire_entry
from services.ledger.storage import derived, frames, segments
from services.ledger.storage.bare import make_whole, verify_bare
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.scrubbing import Scrubber
from services.ledger.storage.segment_files import BARE, SEGMENTS, SegmentFile
from services.ledger.storage.store import LogStore
from tests.fakes.prunable_log import allowing, signed_order
from tests.fakes.written_log import ORIGIN, SMALL, VAULT, Author, WrittenLog

from .conftest import read_whole

FIRST, SECOND, THIRD = (segments.file_name(first) for first in (0, 4, 8))
PART = VaultPart(VAULT.vault_id, None)


def holding(ledger: Author, *, held: bool) -> Candidate:
    action = HOLD_VAULT if held else RELEASE_VAULT
    return ledger.entry(
        Kind.ERASURE, HoldChanged(VAULT.vault_id, held, 1, signed_order(action, VAULT.vault_id.hex())).body()
    )


def erasing(ledger: Author) -> list[Candidate]:
    ordered = ledger.entry(Kind.ERASURE, ErasureOrdered(PART, 4, Authority(1, retention_months=1)).body())
    name = entry_id(ordered.issuer, ordered.issuer_seq)
    done = ErasureDone(PART, name, 4, 9, bytes(32), 2, "kept")
    return [ordered, ledger.entry(Kind.ERASURE, done.body())]


@pytest.fixture
def log(tmp_path: Path) -> WrittenLog:
    """Two sealed segments of four entries, each with public ones and receipts, and a third that grows; all signed."""
    log = WrittenLog(tmp_path / "log").create()
    ledger, router = log.ledger, log.router
    log.append([ledger.introduce()], [router.introduce(), router.receipt("one"), router.receipt("two")])
    log.append([router.receipt("three"), ledger.start()], [router.receipt("four")], [ledger.start()])
    log.append([ledger.start()])
    log.sign()
    return log


def allow(log: WrittenLog, min_index: int = 8) -> None:
    log.append([allowing(log.ledger, min_index)])
    log.sign()


def archive_of(log: WrittenLog) -> Archive:
    folder = log.folder / SEGMENTS
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def pruned(log: WrittenLog, min_index: int = 8) -> WrittenLog:
    allow(log, min_index)
    assert prune(log.folder, [archive_of(log)], SMALL) == Outcome((FIRST, SECOND)[: min_index // 4], ())
    return log


def open_store(log: WrittenLog) -> LogStore:
    return LogStore(
        log.folder, sign=log.ledger.ack_key.sign, clock=lambda: 2 * 10**18, index_key=b"\x08" * 32, geometry=SMALL
    )


def second_reading(log: WrittenLog) -> Reading:
    return read_log(LogFolder(log.folder), Question(block_leaves=SMALL.block_leaves))


def bodies_of_receipts(log: WrittenLog) -> list[bytes]:
    with open_store(log) as store:
        entries = store.reader.entries(0, store.head.size)
        return [stored.row.body for stored in entries if stored.leaf.kind is Kind.RECEIPT]


def test_pruned_log_starts_goes_on_and_is_sound_by_both_readings(log: WrittenLog) -> None:
    gone = bodies_of_receipts(log)
    pruned(log)
    assert sorted(path.name for path in (log.folder / SEGMENTS).iterdir()) == [THIRD]
    everything = b"".join(log.files().values())
    assert not any(body in everything for body in gone)
    for _ in range(2):  # At first bare segments are read, then passed over by what was derived of them.
        log.append([log.router.receipt("five")])
        log.sign()
    with open_store(log) as store:
        assert store.report.segments_read == 1
    reading = second_reading(log)
    assert reading.findings.worst is Status.SOUND
    assert reading.size == 12
    assert any("before 8 were pruned" in remark for remark in reading.findings.remarks)


def test_every_proof_over_pruned_entries_verifies(log: WrittenLog) -> None:
    with open_store(log) as store:
        size, root = store.head.size, store.head.root()
        paths = [inclusion_path(store.index.tree, index, size) for index in range(size)]
    pruned(log)
    with open_store(log) as store:
        assert store.index.tree.root(size) == root
        for index, path in enumerate(paths):
            leaf = leaf_hash(store.reader.entry(index).row.leaf_data)
            verify_inclusion(leaf, index, size, path, root)
            assert inclusion_path(store.index.tree, index, size) == path


def test_reader_is_told_what_is_gone_by_which_entry_and_what_is_held(log: WrittenLog) -> None:
    pruned(log, 4)
    with open_store(log) as store:
        chain = [store.reader.chain_at(size) for size in range(store.head.size + 1)]
        told = [wire_entry(stored, None, store.prunings) for stored in store.reader.entries(0, 9)]
        single = [wire_entry(store.reader.entry(index), None, store.prunings) for index in range(9)]
    assert single == told
    missing = [entry.index for entry in told if entry.HasField("missing")]
    assert missing == [2, 3]
    assert (told[2].missing.reason, told[2].missing.index, told[2].missing.first_held) == ("ENTRY_PRUNED", 9, 4)
    assert told[2].body == b""
    assert all(told[index].body for index in (0, 1, 4, 5))
    assert len(set(chain)) == len(chain)


def test_no_frame_of_a_bare_segment_is_given_out_whole(log: WrittenLog) -> None:
    pruned(log, 4)
    with open_store(log) as store:
        given = [store.reader.whole(store.index.place(index), 1 << 20) for index in range(store.head.size)]
    assert given[:4] == [None] * 4
    assert all(given[4:])


def test_erased_stays_erased_for_who_asks_for_what_is_pruned(log: WrittenLog) -> None:
    pruned(log)
    with open_store(log) as store:
        entry = wire_entry(store.reader.entry(2), 7, store.prunings)
    assert (entry.missing.reason, entry.missing.index) == ("ENTRY_ERASED", 7)


def test_auditor_that_begins_anew_signs_over_pruned_entries(log: WrittenLog) -> None:
    pruned(log)
    (log.folder / "checkpoint").unlink()
    (log.folder / "checkpoints.log").unlink()
    with open_store(log) as store:
        size, root = store.head.size, store.head.root()
    auditor = Auditor(log.folder, ORIGIN, lambda tree: tree.text().encode(), lambda tree: b"", SMALL)
    assert str(size).encode() in auditor.checkpoint(size, root)


async def test_scrub_reads_bare_segments_and_finds_each_changed_byte(log: WrittenLog) -> None:
    pruned(log)

    async def pause(seconds: float) -> None:
        return

    path = log.folder / BARE / FIRST
    for at in range(0, path.stat().st_size, 701):
        with open_store(log) as store:
            assert await Scrubber(store, 1000, pause).scrub() == 2
            flip(path, at)
            with pytest.raises(LogDamaged, match=FIRST):
                await Scrubber(store, 1000, pause).scrub()
            flip(path, at)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_bare_segment_that_lacks_a_frame_is_found(log: WrittenLog, gone: int) -> None:
    """Each frame that is left agrees with itself."""
    pruned(log)
    path = log.folder / BARE / SECOND
    data = path.read_bytes()
    starts = [at for at in range(len(data)) if data.startswith(frames.MAGIC, at)]
    ends = [*starts[1:], len(data) - segments.FOOTER_SIZE]
    path.write_bytes(data[: starts[gone]] + data[ends[gone] :])
    with pytest.raises(LogDamaged):
        list(verify_bare(SegmentFile(path, 4, is_bare=True)))
    assert second_reading(log).findings.has(Status.DAMAGED)


def test_bare_frame_of_another_length_than_it_says_is_damaged(log: WrittenLog) -> None:
    with open_store(log) as store:
        frame = store.reader.frame(store.index.place(5))
    longer = replace(frame.header, length=frame.header.length + 1)
    data, _ = frames.encode(longer, frame.rows, frame.chain_after, frame.root_after)
    bare = frames.strip(data, frame)
    with pytest.raises(frames.FrameDamaged, match="do not fill"):
        frames.parse(frames.parse_header(bare), bare, bare=True)


def test_member_that_lacks_pruned_frames_is_refused_them(log: WrittenLog) -> None:
    pruned(log)
    with open_store(log) as store:
        files = FrameFiles(store)
        last = files.last()
        with pytest.raises(FramesPruned):
            files.find(FrameName(4, b"\x01" * 32), last)
        assert files.find(last.name, last) == last


def test_restored_segments_are_the_same_byte_for_byte(log: WrittenLog, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(log.folder / SEGMENTS, whole)
    pruned(log)
    with open_store(log):
        pass
    for name, first in ((FIRST, 0), (SECOND, 4)):
        with (whole / name).open("rb") as content:
            make_whole(log.folder, first, content)
        assert (log.folder / SEGMENTS / name).read_bytes() == (whole / name).read_bytes()
    assert not list((log.folder / BARE).iterdir())
    with open_store(log) as store:
        assert all(stored.row.body for stored in store.reader.entries(0, store.head.size))
        assert store.report.segments_read == 3
    assert second_reading(log).findings.worst is Status.SOUND


def test_whole_file_counts_where_both_are_there(log: WrittenLog, tmp_path: Path) -> None:
    shutil.copytree(log.folder / SEGMENTS, tmp_path / "whole")
    pruned(log)
    shutil.copyfile(tmp_path / "whole" / FIRST, log.folder / SEGMENTS / FIRST)
    with open_store(log) as store:
        assert store.bare == {4}
        assert store.reader.entry(2).row.body
    assert second_reading(log).findings.worst is Status.SOUND
    assert prune(log.folder, [archive_of(log)], SMALL) == Outcome((FIRST,), ())
    with open_store(log) as store:
        assert store.bare == {0, 4}


def test_another_file_is_not_put_back(log: WrittenLog, tmp_path: Path) -> None:
    shutil.copytree(log.folder / SEGMENTS, tmp_path / "whole")
    pruned(log)
    before = log.files()
    changed = tmp_path / "whole" / FIRST
    flip(changed, changed.stat().st_size - segments.FOOTER_SIZE - 200)
    for other in (changed, tmp_path / "whole" / SECOND, log.folder / BARE / FIRST):
        with other.open("rb") as content, pytest.raises(LogDamaged, match="another file"):
            make_whole(log.folder, 0, content)
        assert log.files() == before


def test_log_that_nobody_allowed_to_be_pruned_is_not(log: WrittenLog) -> None:
    with pytest.raises(PruneNotOrdered):
        prune(log.folder, [archive_of(log)], SMALL)


def test_word_that_no_signed_tree_has_does_not_count(log: WrittenLog) -> None:
    log.append([allowing(log.ledger, 8)])
    with pytest.raises(PruneNotOrdered):
        prune(log.folder, [archive_of(log)], SMALL)


def test_only_whole_segments_below_the_limit_go(log: WrittenLog) -> None:
    allow(log, 7)
    assert prune(log.folder, [archive_of(log)], SMALL) == Outcome((FIRST,), ())
    assert (log.folder / SEGMENTS / SECOND).exists()


def test_entry_that_allows_what_comes_after_it_allows_nothing_after_it(log: WrittenLog) -> None:
    log.append([allowing(log.ledger, 10**6)], [log.router.receipt("five"), log.router.receipt("six")])
    log.append([log.ledger.start()])
    log.sign()
    assert prune(log.folder, [archive_of(log)], SMALL) == Outcome((FIRST, SECOND), ())


def test_segment_that_is_in_no_archive_is_not_pruned(log: WrittenLog) -> None:
    allow(log)
    archive = dict(archive_of(log))
    other = {**archive, SECOND: "00" * 32}
    lacking = {name: digest for name, digest in archive.items() if name != FIRST}
    before = log.files()
    for archives in ([], [other], [lacking], [archive, lacking], [archive, other]):
        with pytest.raises(SegmentNotArchived):
            prune(log.folder, archives, SMALL)
        assert log.files() == before


def test_held_vault_keeps_its_bodies_though_they_are_archived(log: WrittenLog) -> None:
    log.append([holding(log.ledger, held=True)])
    allow(log)
    before = log.files()
    for archives in ([archive_of(log)], []):
        assert prune(log.folder, archives, SMALL) == Outcome((), (FIRST, SECOND))
        assert log.files() == before
    log.append([holding(log.ledger, held=False)])
    assert prune(log.folder, [archive_of(log)], SMALL) == Outcome((), (FIRST, SECOND)), "its release may be lost again"
    log.sign()
    assert prune(log.folder, [archive_of(log)], SMALL) == Outcome((FIRST, SECOND), ())


def test_hold_that_no_signed_tree_has_keeps_bodies_too(log: WrittenLog) -> None:
    allow(log)
    log.append([holding(log.ledger, held=True)])
    assert prune(log.folder, [archive_of(log)], SMALL) == Outcome((), (FIRST, SECOND))


def test_what_is_held_keeps_nothing_else(log: WrittenLog) -> None:
    other = replace(VAULT, vault_id=b"\x0a" * 16)
    log.append([log.router.entry(Kind.RECEIPT, {}, other)], [log.ledger.start(), log.ledger.start()])
    order = signed_order(HOLD_VAULT, other.vault_id.hex())
    log.append([log.ledger.entry(Kind.ERASURE, HoldChanged(other.vault_id, True, 1, order).body())])
    allow(log, 12)
    assert prune(log.folder, [archive_of(log)], SMALL) == Outcome((FIRST, SECOND), (THIRD,))


def test_what_is_erased_needs_no_archive(log: WrittenLog) -> None:
    ordered, done = erasing(log.ledger)
    log.append([ordered])
    allow(log)
    with pytest.raises(SegmentNotArchived):  # The shares are still there.
        prune(log.folder, [], SMALL)
    log.append([done])
    with pytest.raises(SegmentNotArchived):  # What says that they are gone may be lost again.
        prune(log.folder, [], SMALL)
    log.sign()
    assert prune(log.folder, [], SMALL) == Outcome((FIRST, SECOND), ())


def test_damaged_log_is_not_pruned(log: WrittenLog) -> None:
    allow(log)
    path = log.folder / SEGMENTS / FIRST
    flip(path, path.stat().st_size - segments.FOOTER_SIZE - 200)
    before = log.files()
    with pytest.raises(LogDamaged, match=FIRST):
        prune(log.folder, [archive_of(log)], SMALL)
    assert log.files() == before


def test_log_without_bodies_to_take_out_stays_as_it_is(log: WrittenLog) -> None:
    pruned(log)
    before = log.files()
    assert prune(log.folder, [archive_of(log)], SMALL) == Outcome((), ())
    assert log.files() == before


def test_bodies_that_went_without_the_logs_word_are_damage(log: WrittenLog, tmp_path: Path) -> None:
    other = WrittenLog(tmp_path / "other", log.ledger, log.router)
    shutil.copytree(log.folder, other.folder)
    pruned(other)
    shutil.copytree(other.folder / BARE, log.folder / BARE)
    (log.folder / SEGMENTS / FIRST).unlink()
    with pytest.raises(LogDamaged, match=f"{FIRST} is damaged at byte 0: bodies are gone"):
        open_store(log)
    assert second_reading(log).findings.worst is Status.DAMAGED


def test_word_for_one_segment_does_not_cover_the_next(log: WrittenLog, tmp_path: Path) -> None:
    other = WrittenLog(tmp_path / "other", log.ledger, log.router)
    allow(log, 4)
    shutil.copytree(log.folder, other.folder)
    other.append([allowing(log.ledger, 8)])
    other.sign()
    prune(other.folder, [archive_of(other)], SMALL)
    shutil.copytree(other.folder / BARE, log.folder / BARE)
    (log.folder / SEGMENTS / FIRST).unlink()
    with open_store(log):
        pass
    (log.folder / SEGMENTS / SECOND).unlink()
    with pytest.raises(LogDamaged, match=SECOND):
        open_store(log)
    assert second_reading(log).findings.worst is Status.DAMAGED


def test_every_changed_byte_of_a_bare_segment_is_damage_by_both_readings(log: WrittenLog) -> None:
    pruned(log)
    path = log.folder / BARE / FIRST
    size = path.stat().st_size
    for at in (*range(0, segments.HEADER_SIZE, 397), *range(segments.HEADER_SIZE, size, 13), size - 1):
        flip(path, at)
        with pytest.raises(LogDamaged) as damage:
            read_whole(log.folder)
        assert damage.value.file == FIRST
        assert second_reading(log).findings.has(Status.DAMAGED), at
        flip(path, at)
    assert read_whole(log.folder).scanned.head.size == 10


@pytest.mark.parametrize("end", [0, segments.HEADER_SIZE, segments.HEADER_SIZE + 200, -segments.FOOTER_SIZE, -1])
def test_bare_segment_that_was_cut_short_is_damage(log: WrittenLog, end: int) -> None:
    pruned(log)
    path = log.folder / BARE / FIRST
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(LogDamaged, match=FIRST):
        open_store(log)
    assert second_reading(log).findings.has(Status.DAMAGED)


def test_segment_of_which_nothing_is_left_is_damage(log: WrittenLog) -> None:
    pruned(log)
    (log.folder / BARE / FIRST).unlink()
    with pytest.raises(LogDamaged, match=f"{FIRST} is damaged at byte 0: the segment is missing"):
        open_store(log)
    assert second_reading(log).findings.has(Status.DAMAGED)


def test_bare_segment_is_not_taken_for_a_whole_one(log: WrittenLog) -> None:
    """Not even with what was derived of the whole one, which says where its bodies were."""
    pruned(log)
    shutil.move(log.folder / BARE / FIRST, log.folder / SEGMENTS / FIRST)
    with pytest.raises(LogDamaged, match=FIRST):
        open_store(log)
    assert second_reading(log).findings.has(Status.DAMAGED)


def test_derived_file_of_the_whole_segment_is_not_taken_for_the_bare_one(log: WrittenLog) -> None:
    with open_store(log):
        pass
    before = (log.folder / derived.FOLDER / derived.file_name(0)).read_bytes()
    pruned(log)
    with open_store(log) as store:
        assert store.report.segments_read == 3
        assert store.reader.entry(1).row.body
    assert (log.folder / derived.FOLDER / derived.file_name(0)).read_bytes() != before


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << at % 8
    path.write_bytes(data)
