"""Decides at start whether a log may be used: cuts a torn tail, refuses damage, refuses less than was promised.

The floor is the largest size that anyone was told of. Damage in the last frame looks like a torn tail; only the floor
tells them apart, so a log below it is never cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from libs.files import fsync_dir, remove_drafts
from libs.transparency import checkpoint, note
from libs.transparency.checkpoint import Checkpoint
from services.ledger.storage import description, keyring, lost_and_found, records_log, segments, watermark
from services.ledger.storage.damage import LogDamaged, LogRolledBack
from services.ledger.storage.index import Index
from services.ledger.storage.prunings import Prunings, read_prunings
from services.ledger.storage.reading import LogReader
from services.ledger.storage.scan import Scanned, TornTail, scan
from services.ledger.storage.segment_files import BARE, SEGMENTS, is_temporary

CHECKPOINT = "checkpoint"
CHECKPOINT_WITNESSED = "checkpoint.witnessed"
CHECKPOINTS_LOG = "checkpoints.log"
_WRITTEN_WHOLE = re.compile(
    "|".join(map(re.escape, (description.NAME, keyring.NAME, CHECKPOINT, CHECKPOINT_WITNESSED)))
)


@dataclass(frozen=True, slots=True)
class Floor:
    """A size that was promised, and the root that was promised for it where one was."""

    size: int
    root: bytes | None
    source: str


@dataclass(frozen=True, slots=True)
class Signed:
    """What this log has signed."""

    newest: Checkpoint | None
    """The largest tree."""
    end: int
    """Where the last whole record of `checkpoints.log` ends."""


@dataclass(frozen=True, slots=True)
class Report:
    """What recovery found and did, for the operator's log."""

    size: int
    floor: int
    torn: TornTail | None
    saved_tail: Path | None
    """Where the bytes that were cut lie now."""
    watermark_damaged_slots: tuple[int, ...]
    segments: int
    segments_read: int
    """How many segments were read whole, as one is that is not sealed, or has no derived file."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A log that may be used once its torn tail, if any, is cut."""

    scanned: Scanned
    floor: int
    marks: watermark.Marks
    reader: LogReader
    prunings: Prunings


def examine(
    directory: Path,
    origin: str,
    geometry: segments.Geometry,
    index: Index,
    promised: Sequence[Floor] = (),
) -> Examined:
    """Verify a log and hold it to its floors, changing none of it. Raises `LogDamaged` or `LogRolledBack`.

    `promised` adds floors that this folder cannot know: followers' durable sizes, witnesses' newest checkpoints. Sealed
    segments are taken by the files in the index's folder; of those that have none there, every byte is read.
    """
    scanned = scan(directory, origin, geometry, index)
    marks = watermark.read(directory / watermark.NAME)
    floors = [*_local_floors(directory, origin, marks), *promised]
    for floor in sorted(floors, key=lambda each: each.size, reverse=True):
        _hold(scanned, floor)
    reader = LogReader(directory, origin, index, scanned.bare)
    prunings = read_prunings(index, reader)
    prunings.require(scanned.bare)
    return Examined(scanned, max((floor.size for floor in floors), default=0), marks, reader, prunings)


def recover(directory: Path, examined: Examined) -> Report:
    """Cut the torn tail after keeping a copy, and make what is left durable. Deletes unfinished files."""
    scanned, folder = examined.scanned, directory / SEGMENTS
    for unfinished in _unfinished(folder, directory / BARE):
        os.unlink(unfinished)
    remove_drafts(directory, _WRITTEN_WHOLE)
    lost_and_found.remove_unfinished(directory)
    saved = None
    if scanned.number:
        path = folder / segments.file_name(scanned.last_segment)
        if scanned.torn:
            saved = lost_and_found.keep(directory, path, scanned.torn.start)
        _settle(path, scanned.torn)
    fsync_dir(folder)
    return Report(
        size=scanned.head.size,
        floor=examined.floor,
        torn=scanned.torn,
        saved_tail=saved,
        watermark_damaged_slots=examined.marks.damaged_slots,
        segments=scanned.number,
        segments_read=scanned.read,
    )


def read_signed(directory: Path) -> Signed:
    """Return what this log has signed. Raises `LogDamaged`.

    The end of `checkpoints.log` says it: trees are signed in the order of their sizes, and once more at most each, when
    they are cosigned.
    """
    path = directory / CHECKPOINTS_LOG
    stored = records_log.read_end(path, records_log.CHECKPOINTS)
    trees = [_tree(record, path.name) for record in stored.records]
    released = directory / CHECKPOINT
    # A note is in the log, durably, before it is released: a released one that is missing was cut off.
    if released.exists() and _tree(released.read_bytes(), CHECKPOINT) not in trees:
        raise LogDamaged(path.name, stored.end, "the released checkpoint is not in it")
    return Signed(max(trees, key=lambda tree: tree.size, default=None), stored.end)


def _local_floors(directory: Path, origin: str, marks: watermark.Marks) -> Iterable[Floor]:
    if marks.newest:
        yield Floor(marks.newest.size, marks.newest.root, watermark.NAME)
    newest = read_signed(directory).newest
    if newest:
        if newest.origin != origin:
            raise LogDamaged(CHECKPOINTS_LOG, 0, f"it is of {newest.origin}, not of {origin}")
        yield Floor(newest.size, newest.root, CHECKPOINTS_LOG)


def _hold(scanned: Scanned, floor: Floor) -> None:
    name, torn = segments.file_name(scanned.last_segment), scanned.torn
    size = scanned.head.size
    if size < floor.size:
        at, why = (torn.damage, torn.why) if torn else (scanned.last_end, "the log ends")
        raise LogRolledBack(name, at, f"{why}; {size} leaves are left, but {floor.source} promises {floor.size}")
    if floor.root is not None and scanned.index.tree.root(floor.size) != floor.root:
        place = scanned.index.place(floor.size - 1) if floor.size else None
        name = segments.file_name(place.segment) if place else name
        why = f"the first {floor.size} leaves are not those that {floor.source} promises"
        raise LogRolledBack(name, place.offset if place else 0, why)


def _unfinished(*folders: Path) -> list[str]:
    found = [folder for folder in folders if folder.is_dir()]
    return [entry.path for folder in found for entry in os.scandir(folder) if is_temporary(entry.name)]


def _settle(path: Path, torn: TornTail | None) -> None:
    """Sync even where nothing is cut: an accepted last frame may be only in the page cache."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if torn:
            os.ftruncate(descriptor, torn.start)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tree(signed: bytes, file: str) -> Checkpoint:
    try:
        return checkpoint.parse(signed)
    except (note.NoteMalformed, checkpoint.CheckpointMalformed) as error:
        raise LogDamaged(file, 0, f"it holds something other than a checkpoint: {error}") from error
