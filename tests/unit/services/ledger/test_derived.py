"""What is derived from sealed segments: told apart from what is not, made anew, and never believed over a segment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.transparency.leaf import Kind
from libs.transparency.merkle import inclusion_path, verify_inclusion
from services.ledger.intake.sequencer import Candidate, Outcome
from services.ledger.storage import derived, segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.index import Index
from services.ledger.storage.pages import PageDamaged
from services.ledger.storage.recent import Recent
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.selection import Selection
from services.ledger.storage.store import LogStore

from .conftest import DESCRIPTION, INDEX_KEY, KEY, SMALL, SOURCE, candidate, open_store, sequencer

VAULT = b"\x55" * 16
FRAMES = [[1], [2, 3, 4], [5, 7], [8, 6], [9, 10, 11], [12], [13]]
SECOND = derived.file_name(4)


def entry(number: int) -> Candidate:
    kind = Kind.RECEIPT if number % 3 == 0 else Kind.POLICY
    return candidate(number, vault=VAULT if kind is Kind.RECEIPT else bytes(16), kind=kind)


@pytest.fixture
def log(empty_log: Path) -> Path:
    """Three sealed segments of four entries, and one entry in the segment that grows."""
    with open_store(empty_log) as store:
        write(store)
    return empty_log


def write(store: LogStore, made: Callable[[int], Candidate] = entry) -> None:
    writer = sequencer(store)
    for position, numbers in enumerate(FRAMES, 1):
        writer.append([made(number) for number in numbers], SOURCE, position, position)


def answers(store: LogStore) -> list[Any]:
    """All that an index is asked, over the whole log."""
    index, size = store.index, store.head.size
    issuer = candidate(1).issuer
    progress = index.progress(issuer)
    assert progress is not None
    found: list[Any] = [progress.contiguous, progress.highest, index.next_vault_seq(VAULT), index.has(issuer, 14)]
    for number in range(1, size + 1):
        found.append((index.index_of(issuer, number), index.find(entry(number).entry_id)))
    for at in range(size):
        path = inclusion_path(index.tree, at, size)
        verify_inclusion(index.tree.leaf(at), at, size, path, store.head.root())
        stored = store.reader.entry(at)
        found.append((index.place(at).first, index.vault_seq(stored.row.vault_id, at), path, stored.row.body))
    found.append(list(index.selected(Selection(vault_id=VAULT), 0, size)))
    found.append(list(index.of_kinds([Kind.POLICY, Kind.RECEIPT])))
    found.append(sorted({(each.vault_id, each.epoch) for each in index.sealed_under()}))
    found.append([store.reader.chain_at(at) for at in range(size + 1)])
    return found


def test_files_and_memory_give_the_same_answers(log: Path, tmp_path: Path) -> None:
    LogStore.create(tmp_path / "unsealed", DESCRIPTION)
    with open_store(tmp_path / "unsealed", replace(SMALL, segment_leaves=100)) as store:
        write(store)
        from_memory = answers(store)
    with open_store(log) as store:
        assert (store.report.segments, store.report.segments_read) == (4, 1)
        assert answers(store) == from_memory


def test_flipped_bit_at_any_byte_of_a_derived_file_is_noticed_and_the_file_made_anew(log: Path) -> None:
    path = log / derived.FOLDER / SECOND
    true = path.read_bytes()
    with open_store(log) as store:
        expected = answers(store)
    for at in range(len(true)):
        path.write_bytes(true[:at] + bytes([true[at] ^ (1 << at % 8)]) + true[at + 1 :])
        with open_store(log) as store:
            try:
                assert answers(store) == expected
            except PageDamaged:
                assert not path.exists()
        with open_store(log) as store:
            assert answers(store) == expected
        assert path.read_bytes() == true, at


def test_file_cut_at_any_byte_is_made_anew(log: Path) -> None:
    path = log / derived.FOLDER / SECOND
    true = path.read_bytes()
    for length in range(0, len(true), 5):
        path.write_bytes(true[:length])
        open_store(log).__exit__(None, None, None)
        assert path.read_bytes() == true


def _of_another_segment(path: Path) -> None:
    shutil.copyfile(path.with_name(derived.file_name(0)), path)


def _under_another_key(path: Path) -> None:
    """What whoever has the disk would write: that number 5 was never logged, so that it can come in once more."""
    recent = Recent(4)
    path.write_bytes(derived.build(recent, b"", b"", bytes(32), b"\x09" * 32))


def _of_another_history(path: Path) -> None:
    """As the same ledger made it of other entries in the same places, which the disk then lost."""
    other = path.parents[2] / "other"
    LogStore.create(other, DESCRIPTION)
    with open_store(other) as store:
        write(store, lambda number: replace(entry(number), issuer=b"\x12" * 32))
    shutil.copyfile(other / derived.FOLDER / path.name, path)


@pytest.mark.parametrize("forge", [Path.unlink, _of_another_segment, _under_another_key, _of_another_history])
def test_missing_or_foreign_file_is_made_anew(log: Path, forge: Callable[[Path], None]) -> None:
    path = log / derived.FOLDER / SECOND
    true = path.read_bytes()
    forge(path)
    with open_store(log) as store:
        assert store.report.segments_read == 2
        [verdict] = sequencer(store).judge([entry(5)])
        assert (verdict.outcome, verdict.index) == (Outcome.DUPLICATE, 4)
    assert path.read_bytes() == true


def test_all_files_are_made_anew_under_another_key(log: Path) -> None:
    with open_store(log) as store:
        expected = answers(store)
    with LogStore(log, sign=KEY.sign, clock=lambda: 0, index_key=b"\x0a" * 32, geometry=SMALL) as store:
        assert store.report.segments_read == 4
        assert answers(store) == expected


def test_strays_in_the_folder_are_removed(log: Path) -> None:
    stray = log / derived.FOLDER / derived.file_name(8).replace(derived.SUFFIX, ".tmp")
    stray.write_bytes(b"half")
    with open_store(log):
        assert {path.name for path in (log / derived.FOLDER).iterdir()} == {
            derived.file_name(first) for first in (0, 4, 8)
        }


def test_no_file_stays_open_for_each_segment(log: Path) -> None:
    """A long log has more segments than a process may have files."""
    with open_store(log) as store:
        answers(store)
        links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
        targets = [os.readlink(link) for link in links if link.is_symlink()]
        kept = sorted(Path(target).name for target in targets if target.startswith(str(log)))
    assert kept == [segments.file_name(12), "LOCK", "wm"]


def test_damage_of_a_segment_is_not_hidden_by_its_derived_file(log: Path) -> None:
    (log / derived.FOLDER / SECOND).unlink()
    path = log / SEGMENTS / segments.file_name(4)
    data = bytearray(path.read_bytes())
    data[data.index(entry(7).body)] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogDamaged, match=segments.file_name(4)):
        open_store(log)


def test_index_of_a_log_without_entries_is_empty(tmp_path: Path) -> None:
    index = Index(tmp_path, INDEX_KEY)
    assert (index.size, index.find(bytes(32)), list(index.of_kinds(list(Kind)))) == (0, None, [])
    with pytest.raises(IndexError):
        index.place(0)
