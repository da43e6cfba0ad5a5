"""The commit path, and reading back what it wrote."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from libs.transparency import chain, merkle
from libs.transparency.acknowledgement import Statement, acknowledge, verify_acknowledgement
from libs.transparency.leaf import Kind
from services.ledger.intake.sequencer import Outcome, Sequencer
from services.ledger.storage import frames, segments
from services.ledger.storage.damage import LogBroken, LogDamaged, LogExists
from services.ledger.storage.head import SourceOutOfOrder
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.store import LogStore
from tests.fakes.full_disk import files_limited_to
from tests.fakes.unsynced_disk import writes_without_sync

from .conftest import DESCRIPTION, KEY, ORIGIN, SOURCE, candidate, fill, open_store, sequencer, tag

VAULT = b"\x55" * 16


def test_commit_is_acknowledged_and_can_be_acknowledged_again(empty_log: Path) -> None:
    public_key = KEY.public_key().public_bytes_raw()
    with open_store(empty_log) as store:
        [commit] = sequencer(store).append([candidate(n) for n in (1, 2, 3)], SOURCE, 1, 1)
        for number, each in enumerate(acknowledge(commit.entries, log_id=store.log_id, signer_epoch=1, key=KEY), 1):
            statement = verify_acknowledgement(each, public_key, store.log_id)
            assert (statement.index, statement.issuer_seq, statement.time_ms) == (number - 1, number, 7_000)
        first_time = commit.entries[1]
    with open_store(empty_log) as store:
        again = store.reader.statement(1)
        assert again == first_time
        [anew] = acknowledge([again], log_id=store.log_id, signer_epoch=2, key=KEY)
        assert verify_acknowledgement(anew, public_key, store.log_id).data() == first_time[0]


def test_each_entry_is_found_behind_bodies_of_any_length(empty_log: Path) -> None:
    lengths = [33, 300, 70_000, 255, 256, 512 * 1024, 65_536, 40]
    bodies = [os.urandom(length) for length in lengths]
    with open_store(empty_log) as store:
        sequencer(store).append([candidate(at, body=body) for at, body in enumerate(bodies, 1)], SOURCE, 1, 1)
        assert [store.reader.entry(index).row.body for index in range(8)] == bodies
        assert [stored.row.body for stored in store.reader.entries(0, 8)] == bodies


def test_chain_and_root_are_the_formats_own(empty_log: Path) -> None:
    with open_store(empty_log) as store:
        writer = sequencer(store)
        for number in range(1, 7):
            writer.append([candidate(number)], SOURCE, number, number)
        head, leaves = chain.chain_start(ORIGIN), []
        for stored in store.reader.entries(0, 6):
            assert store.reader.chain_at(stored.index) == head
            leaves.append(merkle.leaf_hash(stored.row.leaf_data))
            head = chain.chain_next(head, stored.index, leaves[-1])
        assert (store.head.chain, store.reader.chain_at(6)) == (head, head)
        assert store.head.root() == merkle.root_of(leaves) == store.index.tree.root()


def test_segments_name_each_other_and_the_seal_verifies(two_segments: Path) -> None:
    first = (two_segments / SEGMENTS / segments.file_name(0)).read_bytes()
    footer = segments.Footer.parse(first[-segments.FOOTER_SIZE :])
    footer.verify(KEY.public_key().public_bytes_raw())
    with pytest.raises(segments.SealInvalid):
        replace(footer, count=3).verify(KEY.public_key().public_bytes_raw())
    second = (two_segments / SEGMENTS / segments.file_name(4)).read_bytes()[: segments.HEADER_SIZE]
    assert segments.Header.parse(second).previous_footer == segments.footer_hash(first[-segments.FOOTER_SIZE :])
    assert footer.blocks == (footer.root,)


def test_entry_that_is_logged_is_a_duplicate_at_its_index_also_after_a_restart(two_segments: Path) -> None:
    with open_store(two_segments) as store:
        duplicate, new = sequencer(store).judge([candidate(4), candidate(7)])
        assert (duplicate.outcome, duplicate.index) == (Outcome.DUPLICATE, 3)
        assert (new.outcome, new.index) == (Outcome.NEW, 6)


@pytest.mark.parametrize(
    "other", [candidate(4, body=b"other"), replace(candidate(4), kind=Kind.REVOCATION)], ids=["commitment", "kind"]
)
def test_other_entry_under_a_logged_number_is_a_conflict(two_segments: Path, other: object) -> None:
    with open_store(two_segments) as store:
        [verdict] = sequencer(store).judge([other])  # type: ignore[list-item]
        assert (verdict.outcome, verdict.index) == (Outcome.CONFLICT, 3)
        assert verdict.logged_commitment == candidate(4).commitment


def test_second_of_two_in_one_message_is_judged_against_the_first(empty_log: Path) -> None:
    with open_store(empty_log) as store:
        verdicts = sequencer(store).judge([candidate(1), candidate(1), candidate(1, body=b"other")])
        assert [each.outcome for each in verdicts] == [Outcome.NEW, Outcome.DUPLICATE, Outcome.CONFLICT]
        assert [each.index for each in verdicts] == [0, 0, 0]


def test_append_refuses_what_is_not_new(two_segments: Path) -> None:
    with open_store(two_segments) as store, pytest.raises(ValueError, match="only new entries"):
        sequencer(store).append([candidate(1)], SOURCE, 5, 5)


def test_frames_end_at_blocks_and_only_the_last_moves_the_position(empty_log: Path) -> None:
    with open_store(empty_log) as store:
        commits = sequencer(store).append([candidate(n) for n in range(1, 11)], SOURCE, 1, 9)
        assert [(commit.first, len(commit.entries)) for commit in commits] == [(0, 4), (4, 4), (8, 2)]
        assert [store.reader.frame(store.index.place(at)).header.source_high for at in (0, 4, 8)] == [0, 0, 9]
        assert [store.index.place(at).segment for at in (3, 4, 7, 8)] == [0, 4, 4, 8]


def test_frame_holds_at_most_its_rows_and_bytes(empty_log: Path) -> None:
    with open_store(empty_log, segments.Geometry(zeros_ahead=0)) as store:
        many = sequencer(store).append([candidate(n) for n in range(1, frames.MAX_ROWS + 2)], SOURCE, 1, 1)
        assert [len(commit.entries) for commit in many] == [frames.MAX_ROWS, 1]
        large = [candidate(n, body=bytes([n % 7]) * (6 << 20)) for n in range(5001, 5004)]
        assert [
            len(commit.entries)
            for commit in Sequencer(store, epoch=2, tag=tag, clock=lambda: 0).append(large, SOURCE, 2, 2)
        ] == [2, 1]
        with pytest.raises(ValueError, match="a frame has at most"):
            sequencer(store).append([candidate(6000, body=bytes(frames.MAX_SIZE))], SOURCE, 3, 3)
    with open_store(empty_log, segments.Geometry(zeros_ahead=0)) as store:
        assert store.head.size == frames.MAX_ROWS + 4


def test_position_moves_without_entries_and_must_follow(empty_log: Path) -> None:
    with open_store(empty_log) as store:
        writer = sequencer(store)
        writer.append([], SOURCE, 40, 44)
        with pytest.raises(SourceOutOfOrder, match="46 does not follow 44"):
            writer.append([candidate(1)], SOURCE, 46, 46)
        writer.append([candidate(1)], b"\x52" * 16, 9, 9)
    with open_store(empty_log) as store:
        assert (store.head.size, store.head.source, store.head.source_high) == (1, b"\x52" * 16, 9)


def test_vault_numbers_have_no_gap_and_make_the_tags(empty_log: Path) -> None:
    with open_store(empty_log) as store:
        rows = [candidate(1, vault=VAULT), candidate(2), candidate(3, vault=VAULT), candidate(4, vault=VAULT)]
        [commit] = sequencer(store).append(rows, SOURCE, 1, 1)
        assert [Statement.parse(statement).vault_seq for statement, _ in commit.entries] == [1, 1, 2, 3]
        assert store.reader.entry(2).leaf.tag == tag(VAULT, 2)
    with open_store(empty_log) as store:
        assert store.index.next_vault_seq(VAULT) == 4
        assert [store.index.vault_seq(VAULT, at) for at in (0, 2, 3)] == [1, 2, 3]


def test_issuers_missing_numbers_are_known(empty_log: Path) -> None:
    fill(empty_log, [[1, 2], [5], [9]])
    with open_store(empty_log) as store:
        progress = store.index.progress(candidate(1).issuer)
        assert progress is not None
        assert (progress.contiguous, progress.highest) == (2, 9)
        assert progress.missing(100) == [3, 4, 6, 7, 8]
        assert progress.missing(3) == [3, 4, 6]


def test_time_never_goes_back_and_the_epoch_only_up(empty_log: Path) -> None:
    with open_store(empty_log) as store:
        [late] = Sequencer(store, epoch=3, tag=tag, clock=lambda: 9_000).append([candidate(1)], SOURCE, 1, 1)
        [early] = Sequencer(store, epoch=4, tag=tag, clock=lambda: 8_000).append([candidate(2)], SOURCE, 2, 2)
        assert (late.wall_ns, early.wall_ns) == (9_000, 9_000)
    with open_store(empty_log) as store, pytest.raises(ValueError, match="above 4"):
        Sequencer(store, epoch=4, tag=tag, clock=lambda: 0)


def test_failed_write_breaks_the_log_for_good_and_loses_nothing_promised(empty_log: Path) -> None:
    fill(empty_log, [[1]])
    with open_store(empty_log) as store:
        writer = sequencer(store)
        size = (empty_log / SEGMENTS / segments.file_name(0)).stat().st_size
        with files_limited_to(size), pytest.raises(LogBroken, match="could not be written") as caught:
            writer.append([candidate(2, body=bytes(5000))], SOURCE, 2, 2)
        assert caught.value.exit_status == 70
        with pytest.raises(LogBroken, match="broken since an earlier write"):
            writer.append([candidate(2)], SOURCE, 2, 2)
        assert store.head.size == store.index.size == 1
    with open_store(empty_log) as store:
        assert store.head.size == 1


def test_entry_that_could_not_be_made_durable_is_not_committed(empty_log: Path) -> None:
    fill(empty_log, [[1]])
    with open_store(empty_log) as store:
        writer = sequencer(store)
        with (
            writes_without_sync(empty_log / SEGMENTS / segments.file_name(0)),
            pytest.raises(LogBroken, match="could not be written"),
        ):
            writer.append([candidate(2)], SOURCE, 2, 2)
        assert store.head.size == store.index.size == 1


def test_reader_refuses_an_entry_that_changed_after_the_start(two_segments: Path) -> None:
    path = two_segments / SEGMENTS / segments.file_name(0)
    with open_store(two_segments) as store:
        at = path.read_bytes().index(candidate(3).body)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"S")
        with pytest.raises(LogDamaged, match=f"byte {at}: the body of entry 2 has changed"):
            store.reader.entry(2)
        with pytest.raises(LogDamaged, match="does not match its hash"):
            list(store.reader.entries(0, 4))
        assert store.reader.entry(1).row.body == candidate(2).body


def test_log_is_not_made_twice(empty_log: Path) -> None:
    with pytest.raises(LogExists):
        LogStore.create(empty_log, DESCRIPTION)
