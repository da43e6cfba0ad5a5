"""What a start makes of every way in which the files may have changed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from libs.transparency import checkpoint
from libs.transparency.checkpoint import Checkpoint
from services.ledger.storage import recovery, segments, watermark
from services.ledger.storage.damage import LogDamaged, LogLocked, LogMissing, LogRolledBack
from services.ledger.storage.lost_and_found import LOST_AND_FOUND
from services.ledger.storage.records_log import CHECKPOINTS, OWED, RecordsLog, read_each, read_end
from services.ledger.storage.recovery import Floor
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.store import LogStore

from .conftest import (
    INDEX_KEY,
    KEY,
    ORIGIN,
    SOURCE,
    candidate,
    examined,
    fill,
    open_store,
    read_whole,
    sequencer,
)

FIRST, SECOND = segments.file_name(0), segments.file_name(4)


def flip(path: Path, at: int, mask: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ mask]))


def frame_ends(path: Path) -> list[int]:
    data = path.read_bytes()
    ends, at = [segments.HEADER_SIZE], segments.HEADER_SIZE
    while data[at : at + 4] == b"TMF1":
        at += int.from_bytes(data[at + 4 : at + 8], "big")
        ends.append(at)
    return ends


def test_clean_log_is_reopened_with_everything_in_it(two_segments: Path) -> None:
    with open_store(two_segments) as store:
        assert store.head.size == 6
        assert store.report.torn is None
        assert [stored.row.body for stored in store.reader.entries(0, 9)] == [candidate(n).body for n in range(1, 7)]
        sequencer(store).append([candidate(7)], SOURCE, 5, 5)
    with open_store(two_segments) as store:
        assert store.head.size == 7


def test_flipped_bit_at_any_byte_of_a_sealed_segment_is_damage_with_its_place(two_segments: Path) -> None:
    path = two_segments / SEGMENTS / FIRST
    structures = [0, *frame_ends(path)]
    for at in range(path.stat().st_size):
        flip(path, at, 1 << at % 8)
        with pytest.raises(LogDamaged) as caught:
            read_whole(two_segments)
        flip(path, at, 1 << at % 8)
        assert (caught.value.exit_status, caught.value.file) == (3, FIRST)
        begin = max(start for start in structures if start <= at)
        assert begin <= caught.value.offset, at
        if at < segments.HEADER_HASHED and not segments.EPOCH_AT <= at < segments.EPOCH_AT + 16:
            assert caught.value.offset == at
    read_whole(two_segments)


def test_flipped_bit_at_any_byte_of_the_active_segment_is_found(two_segments: Path) -> None:
    path = two_segments / SEGMENTS / SECOND
    _, fifth, sixth = frame_ends(path)
    for at in range(path.stat().st_size):
        flip(path, at, 1 << at % 8)
        if at < fifth:
            with pytest.raises(LogDamaged) as damaged:
                examined(two_segments)
            assert (damaged.value.file, damaged.value.exit_status) == (SECOND, 3)
        elif at < sixth:
            with pytest.raises(LogRolledBack, match="5 leaves are left, but wm promises 6") as rolled_back:
                examined(two_segments)
            assert (rolled_back.value.file, rolled_back.value.exit_status) == (SECOND, 4)
            assert fifth <= rolled_back.value.offset < sixth
        else:
            torn = examined(two_segments).scanned.torn
            assert torn is not None
            assert (torn.start, torn.damage) == (sixth, at)
        flip(path, at, 1 << at % 8)


def test_damage_is_named_by_file_and_byte(two_segments: Path) -> None:
    path = two_segments / SEGMENTS / FIRST
    body = path.read_bytes().index(candidate(2).body)
    flip(path, body + 3)
    with pytest.raises(LogDamaged, match=re.escape(f"{FIRST} is damaged at byte {body}")):
        read_whole(two_segments)


def test_truncation_at_any_byte_is_below_the_floor_or_cuts_nothing(two_segments: Path) -> None:
    path = two_segments / SEGMENTS / SECOND
    content, ends = path.read_bytes(), frame_ends(path)
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        if length >= ends[-1]:
            assert examined(two_segments).scanned.head.size == 6
        else:
            with pytest.raises((LogRolledBack, LogDamaged)) as caught:
                examined(two_segments)
            assert caught.value.exit_status == (3 if length < segments.HEADER_SIZE else 4)


def test_truncation_without_a_floor_leaves_exactly_the_whole_frames(two_segments: Path) -> None:
    (two_segments / watermark.NAME).unlink()
    path = two_segments / SEGMENTS / SECOND
    ends = frame_ends(path)
    for length in reversed(range(segments.HEADER_SIZE, path.stat().st_size)):
        os.truncate(path, length)
        scanned = examined(two_segments).scanned
        whole = [end for end in ends if end <= length]
        assert (scanned.head.size, scanned.last_end) == (3 + len(whole), whole[-1])


def test_kill_during_an_append_leaves_the_log_before_or_after_it(two_segments: Path) -> None:
    path, mark = two_segments / SEGMENTS / SECOND, (two_segments / watermark.NAME).read_bytes()
    fill(two_segments, [[7, 8]])
    after = path.read_bytes()
    start, end = frame_ends(path)[-2:]
    (two_segments / watermark.NAME).write_bytes(mark)
    for written in range(start, end + 1):
        path.write_bytes(after[:written] + bytes(len(after) - written))
        scanned = examined(two_segments).scanned
        assert scanned.head.size == (8 if written == end or not any(after[written:end]) else 6)


def test_torn_tail_is_kept_and_cut_and_the_log_goes_on(two_segments: Path) -> None:
    path = two_segments / SEGMENTS / SECOND
    end = frame_ends(path)[-1]
    flip(path, end + 5)
    with open_store(two_segments) as store:
        assert store.report.saved_tail is not None
        assert store.report.saved_tail.read_bytes() == bytes(5) + b"\x01"
        sequencer(store).append([candidate(7)], SOURCE, 5, 5)
    with open_store(two_segments) as store:
        assert (store.head.size, store.report.torn) == (7, None)


def test_lost_last_segment_is_below_the_floor(two_segments: Path) -> None:
    (two_segments / SEGMENTS / SECOND).unlink()
    with pytest.raises(LogRolledBack, match="wm promises 6"):
        open_store(two_segments)


def test_lost_earlier_segment_is_damage(two_segments: Path) -> None:
    (two_segments / SEGMENTS / FIRST).unlink()
    with pytest.raises(LogDamaged, match=f"{FIRST} is damaged at byte 0: the segment is missing"):
        open_store(two_segments)


def test_foreign_file_among_the_segments_is_refused(two_segments: Path) -> None:
    (two_segments / SEGMENTS / "notes.txt").write_text("hello")
    with pytest.raises(LogDamaged, match=r"notes\.txt"):
        open_store(two_segments)


def test_unfinished_segment_is_deleted(two_segments: Path) -> None:
    unfinished = two_segments / SEGMENTS / "00000000000000000006.tmp"
    unfinished.write_bytes(b"TMSEG")
    open_store(two_segments).__exit__(None, None, None)
    assert not unfinished.exists()


def test_drafts_that_a_killed_ledger_left_are_deleted(two_segments: Path) -> None:
    (two_segments / LOST_AND_FOUND).mkdir()
    names = ("log.json", "keyring", "checkpoint", f"{LOST_AND_FOUND}/00000000000000000004.123.0123456789abcdef")
    drafts = [two_segments / name for name in names]
    drafts = [path.with_name(f".{path.name}.0123456789abcdef") for path in drafts]
    others = two_segments / ".notes.0123456789abcdef"
    for path in (*drafts, others):
        path.write_bytes(b"half")
    with open_store(two_segments):
        pass
    assert not any(path.exists() for path in drafts)
    assert others.exists()


def test_consistent_older_image_is_below_the_signed_size(empty_log: Path, tmp_path: Path) -> None:
    fill(empty_log, [[1], [2]])
    older = tmp_path / "older"
    shutil.copytree(empty_log, older)
    fill(empty_log, [[3]])
    with open_store(empty_log) as store:
        signed = checkpoint.sign(Checkpoint(ORIGIN, 3, store.head.root()), KEY)
    log = RecordsLog(older / recovery.CHECKPOINTS_LOG, CHECKPOINTS, 0)
    log.append([signed])
    log.close()
    with pytest.raises(LogRolledBack, match=re.escape("2 leaves are left, but checkpoints.log promises 3")):
        open_store(older)


def test_other_history_than_was_signed_is_refused(two_segments: Path) -> None:
    log = RecordsLog(two_segments / recovery.CHECKPOINTS_LOG, CHECKPOINTS, 0)
    log.append([checkpoint.sign(Checkpoint(ORIGIN, 5, b"\x09" * 32), KEY)])
    log.close()
    with pytest.raises(LogRolledBack, match="the first 5 leaves are not those") as caught:
        open_store(two_segments)
    assert caught.value.file == SECOND


def test_checkpoint_that_was_released_must_still_be_in_its_log(two_segments: Path) -> None:
    with open_store(two_segments) as store:
        signed = checkpoint.sign(Checkpoint(ORIGIN, 6, store.head.root()), KEY)
    (two_segments / recovery.CHECKPOINT).write_bytes(signed)
    with pytest.raises(
        LogDamaged, match=r"checkpoints\.log is damaged at byte 0: the released checkpoint is not in it"
    ):
        open_store(two_segments)


def test_checkpoints_of_another_log_are_refused(two_segments: Path) -> None:
    log = RecordsLog(two_segments / recovery.CHECKPOINTS_LOG, CHECKPOINTS, 0)
    log.append([checkpoint.sign(Checkpoint("other.example/ledger/1", 1, b"\x09" * 32), KEY)])
    log.close()
    with pytest.raises(LogDamaged, match=r"it is of other\.example/ledger/1"):
        open_store(two_segments)


def test_floor_that_others_know_is_held(two_segments: Path) -> None:
    with pytest.raises(LogRolledBack, match="a witness promises 7"):
        read_whole(two_segments, promised=[Floor(7, None, "a witness")])


def test_flipped_bit_anywhere_in_the_watermark_is_reported(two_segments: Path) -> None:
    path = two_segments / watermark.NAME
    for at in range(path.stat().st_size):
        flip(path, at)
        marks = watermark.read(path)
        assert marks.damaged_slots == (at // watermark.SLOT_SIZE,)
        assert marks.newest is not None
        flip(path, at)


def test_flipped_bit_anywhere_in_the_description_is_damage(two_segments: Path) -> None:
    path = two_segments / "log.json"
    for at in range(path.stat().st_size):
        flip(path, at)
        with pytest.raises(LogDamaged, match=r"log\.json"):
            open_store(two_segments)
        flip(path, at)


def test_flipped_bit_anywhere_in_a_records_file_is_found_or_looks_torn(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.log"
    log = RecordsLog(path, CHECKPOINTS, 0)
    log.append([b"one", b"two"])
    log.append([b"three"])
    log.close()
    whole = read_end(path, CHECKPOINTS)
    assert (whole.records, whole.end) == ((b"one", b"two", b"three"), path.stat().st_size)
    last = path.stat().st_size - len(b"three") - 40
    for at in range(path.stat().st_size):
        flip(path, at)
        if at < last:
            with pytest.raises(LogDamaged, match=r"checkpoints\.log"):
                read_end(path, CHECKPOINTS)
        else:
            found = read_end(path, CHECKPOINTS)
            assert (found.records, found.end) == ((b"one", b"two"), last)
        flip(path, at)


@pytest.mark.parametrize("lost", range(1, 1 << 4))
def test_what_a_power_cut_leaves_of_records_synced_together_is_cut(tmp_path: Path, lost: int) -> None:
    """Sectors come to the disk in any order: later records may be whole, and the first one a hole."""
    path = tmp_path / "owed.log"
    log = RecordsLog(path, OWED, 0)
    log.append([b"synced"])
    synced = log.end
    log.append([b"%d" % number * 300 for number in range(6)])
    log.close()
    data = bytearray(path.read_bytes())
    for sector in range(4):
        if lost >> sector & 1:
            start = max(sector * 512, synced)
            data[start : (sector + 1) * 512] = bytes((sector + 1) * 512 - start)
    path.write_bytes(data)
    found: list[bytes] = []
    end = read_each(path, OWED, found.append)
    torn = path.read_bytes()[end:]
    assert found[0] == b"synced"
    assert found[1:] == [b"%d" % number * 300 for number in range(len(found) - 1)]
    assert torn
    again = RecordsLog(path, OWED, end)
    assert again.saved is not None
    assert again.saved.read_bytes() == torn.rstrip(b"\0")
    again.append([b"next"])
    again.close()
    read_each(path, OWED, found.append)
    assert found[-1] == b"next"


def test_of_a_long_records_file_the_end_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.log"
    log = RecordsLog(path, CHECKPOINTS, 0)
    for number in range(1000):
        log.append([b"note %d" % number])
    log.close()
    whole = read_end(path, CHECKPOINTS)
    assert len(whole.records) == 1000
    for most in (1, 45, 46, 47, 94, 95, 1000):
        found = read_end(path, CHECKPOINTS, most)
        assert found.end == whole.end == path.stat().st_size
        assert found.records == whole.records[-len(found.records) :]
        assert 1 <= len(found.records) <= max(2 * most // 46, 1)
    flip(path, 500)
    assert read_end(path, CHECKPOINTS, 1000).end == whole.end
    flip(path, path.stat().st_size - 500)
    with pytest.raises(LogDamaged, match=r"checkpoints\.log is damaged at byte 4[0-9]{4}:"):
        read_end(path, CHECKPOINTS, 1000)


def test_what_was_signed_last_is_the_floor_however_much_was_signed_before(two_segments: Path) -> None:
    path = two_segments / recovery.CHECKPOINTS_LOG
    notes = [checkpoint.sign(Checkpoint(ORIGIN, size, b"\x09" * 32), KEY) for size in range(1, 3000)]
    log = RecordsLog(path, CHECKPOINTS, 0)
    log.append(notes)
    log.close()
    assert recovery.read_signed(two_segments) == recovery.Signed(
        Checkpoint(ORIGIN, 2999, b"\x09" * 32), path.stat().st_size
    )
    assert path.stat().st_size > 2 << 18  # More than what is read of it.
    (two_segments / recovery.CHECKPOINT).write_bytes(notes[-1])
    with pytest.raises(LogRolledBack, match=re.escape("6 leaves are left, but checkpoints.log promises 2999")):
        open_store(two_segments)


def test_second_process_is_locked_out(two_segments: Path) -> None:
    with open_store(two_segments), pytest.raises(LogLocked, match="another process"):
        open_store(two_segments)


def test_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogMissing, match="create the log first"):
        LogStore(tmp_path, sign=KEY.sign, clock=lambda: 0, index_key=INDEX_KEY)


def test_kill_during_sealing_loses_nothing(empty_log: Path) -> None:
    fill(empty_log, [[1, 2], [3, 4]])
    path = empty_log / SEGMENTS / FIRST
    before, mark = path.read_bytes(), (empty_log / watermark.NAME).read_bytes()
    fill(empty_log, [[5]])
    sealed = path.read_bytes()
    (empty_log / watermark.NAME).write_bytes(mark)
    (empty_log / SEGMENTS / SECOND).unlink()
    start = len(sealed) - segments.FOOTER_SIZE
    for written in range(start, len(sealed), 31):
        path.write_bytes(sealed[:written] + before[written:])
        assert read_whole(empty_log).scanned.head.size == 4
    path.write_bytes(sealed + bytes(100))
    fill(empty_log, [[5]])
    assert path.read_bytes() == sealed
    path.write_bytes(sealed)
    (empty_log / SEGMENTS / SECOND).unlink()
    (empty_log / watermark.NAME).write_bytes(mark)
    fill(empty_log, [[5]])
    with open_store(empty_log) as store:
        assert store.head.size == 5
