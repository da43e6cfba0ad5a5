"""6: a log cut at every byte of its last frames, and what is owed at every byte. 7: one bit changed at every byte of
every file. 8: in the last acknowledged frame. 18: on its way from memory to the disk.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from structlog.testing import capture_logs

from libs.audit.log.findings import Findings
from libs.audit.log.records import read_records
from libs.events.outbox import open_outbox
from libs.events.outbox_items import OutboxDamaged
from libs.transparency import checkpoint
from libs.transparency.cosignature import QuorumNotReached, verify_quorum
from libs.transparency.merkle import root_of
from libs.transparency.note import NoteMalformed
from services.ledger.auditor import RootDiffers
from services.ledger.intake import owed
from services.ledger.intake.owed import Owed
from services.ledger.intake.rejections import Rejections
from services.ledger.storage import segments, watermark
from services.ledger.storage.damage import LogDamaged, LogRolledBack, StoredLogError
from services.ledger.storage.derived import FOLDER as DERIVED
from services.ledger.storage.lost_and_found import LOST_AND_FOUND
from services.ledger.storage.recovery import CHECKPOINT, CHECKPOINT_WITNESSED, CHECKPOINTS_LOG
from services.ledger.storage.segment_files import SEGMENTS
from tests.faults.ledger.commits import OUTBOX
from tests.faults.ledger.disk import Kind, Trouble
from tests.faults.ledger.life import WITNESS, auditor_of, keyring_of, open_log, run
from tests.faults.ledger.outcome import Batch, Outcome
from tests.faults.ledger.recorder import second_reading
from tests.faults.ledger.saying import owed_in
from tests.faults.ledger.small_log import SmallLog, remove

_FLOORS = (watermark.NAME, CHECKPOINT, CHECKPOINT_WITNESSED, CHECKPOINTS_LOG)
_FRAMES = 3
_FRAMING = 40
"""Bytes around a record of what is owed."""


def cuts(batch: Batch) -> Outcome:
    """Cut the active segment at any byte of its last frames, with what promises its size, and without."""
    outcome, log = Outcome(), _long_tailed(batch)
    path, ends = active_segment(log.folder)
    lengths = range(ends[-1 - _FRAMES], ends[-1])
    trials = batch.in_any_order([(length, is_promised) for length in lengths for is_promised in (True, False)])
    for number in batch.rounds:
        length, is_promised = trials[number % len(trials)]
        folder = log.copy(f"{number}")
        if not is_promised:
            _forget_floors(folder)
        os.truncate(folder / path, length)
        whole = max(at for at, end in enumerate(ends) if end <= length)
        trial = f"{'promised' if is_promised else 'nothing promised'}, cut at byte {length}"
        try:
            with open_log(folder, log.plan) as store:
                size = store.head.size
        except StoredLogError as error:
            outcome.require(is_promised and error.exit_status == LogRolledBack.exit_status, f"{trial}: {error}")
            outcome.counts["cuts refused with exit status 4"] += 1
        else:
            outcome.require(not is_promised, f"{trial}: it starts with {size} leaves")
            outcome.require(_sizes(log.folder, path)[whole] == size, f"{trial}: {size} leaves are left")
            is_kept = any((folder / LOST_AND_FOUND).glob("*")) if (folder / LOST_AND_FOUND).exists() else False
            outcome.require(is_kept == (length > ends[whole]), f"{trial}: what was removed is not kept")
            outcome.counts["cuts to the last whole frame"] += 1
        remove(folder)
    return outcome


def cuts_of_what_is_owed(batch: Batch) -> Outcome:
    """Cut `owed.log` at any byte: what was whole is owed, and the rest is said to be cut and kept."""
    outcome, log = Outcome(), SmallLog.make(batch.folder)
    data = (log.folder / owed.NAME).read_bytes()
    ends = [
        0,
        *(at + len(record) + _FRAMING for at, record in read_records(io.BytesIO(data), b"TMOW", owed.NAME, Findings())),
    ]
    sayings = owed_in(log.folder)
    lengths = batch.in_any_order(range(len(data)))
    for number in batch.rounds:
        length = lengths[number % len(lengths)]
        folder = log.copy(f"{number}")
        os.truncate(folder / owed.NAME, length)
        whole = max(at for at, end in enumerate(ends) if end <= length)
        with capture_logs() as said:
            left = owed_in(folder)
        outcome.require(left == sayings[:whole], f"cut at byte {length}: {len(left)} of {whole} are owed")
        rest = data[ends[whole] : length]
        outcome.require(
            _kept(folder, owed.NAME) == rest.rstrip(b"\0"), f"cut at byte {length}: what was removed is not kept"
        )
        outcome.require(bool(said) == bool(rest), f"cut at byte {length}: nobody is told")
        outcome.counts["cuts of what is owed"] += 1
        remove(folder)
    return outcome


def flips(batch: Batch) -> Outcome:
    """Change one bit at any byte of any file. Nothing may take it for what was there."""
    outcome, log = Outcome(), SmallLog.make(batch.folder)
    places = [
        (path.relative_to(log.folder), at)
        for path in sorted(log.folder.rglob("*"))
        if path.is_file() and path.name != "LOCK"
        for at in range(path.stat().st_size)
    ]
    places = batch.in_any_order(places)
    for number in batch.rounds:
        name, at = places[number % len(places)]
        bit = batch.chance(number).randrange(8)
        with _flipped(log, f"{number}", name, at, bit) as folder:
            found = _noticed(log, folder, name)
        outcome.require(bool(found), f"{name}: bit {bit} of byte {at} is taken for what was there")
        outcome.counts[f"flips in {name.parts[0]} {found}"] += 1
    return outcome


def flips_below_the_floor(batch: Batch) -> Outcome:
    """Change one bit of the last frame, all of which was acknowledged and signed: it is no torn tail."""
    outcome, log = Outcome(), _long_tailed(batch)
    path, ends = active_segment(log.folder)
    places = batch.in_any_order(range(ends[-2], ends[-1]))
    for number in batch.rounds:
        at = places[number % len(places)]
        with _flipped(log, f"{number}", path, at, number % 8) as folder:
            try:
                with open_log(folder, log.plan):
                    outcome.wrong.append(f"it starts with byte {at} changed")
            except StoredLogError as error:
                outcome.require(error.exit_status == LogRolledBack.exit_status, f"byte {at}: {error}")
                outcome.counts["flips refused with exit status 4"] += 1
    return outcome


def flips_in_memory(batch: Batch) -> Outcome:
    """Change one bit of any write after it was computed. No tree is signed that the files do not bear out."""
    outcome, log = Outcome(), SmallLog.make(batch.folder)
    folder = log.copy("whole")
    writes = run(folder, log.plan).writes
    remove(folder)
    for number in batch.rounds:
        chance = batch.chance(number)
        trouble = Trouble(Kind.FLIP, chance.choice(writes), number=chance.randrange(2**32))
        folder = log.copy(f"{number}")
        lived = run(folder, log.plan, trouble)
        acknowledged = {each.index: each.leaf_hash for each in (*log.lived.acknowledged(), *lived.acknowledged())}
        for note in lived.notes():
            tree = checkpoint.parse(note)
            hashes = [acknowledged.get(at, b"") for at in range(tree.size)]
            outcome.require(root_of(hashes) == tree.root, f"{trouble}: a tree of {tree.size} other leaves is signed")
        outcome.counts["writes with a bit changed"] += 1
        outcome.counts["of them noticed before the end"] += lived.status != 0
        remove(folder)
    return outcome


def roots_in_memory(batch: Batch) -> Outcome:
    """Change one bit of the root that the writer hands to the auditor."""
    outcome, log = Outcome(), SmallLog.make(batch.folder)
    with open_log(log.folder, log.plan) as store:
        size, root = store.head.size, store.head.root()
    released = (log.folder / CHECKPOINT).read_bytes()
    for number in batch.rounds:
        wrong = (int.from_bytes(root, "big") ^ 1 << number % 256).to_bytes(32, "big")
        try:
            auditor_of(log.folder, log.plan).checkpoint(size, wrong)
        except RootDiffers:
            outcome.counts["wrong roots refused"] += 1
        else:
            outcome.wrong.append(f"a root with bit {number % 256} changed is signed")
    outcome.require((log.folder / CHECKPOINT).read_bytes() == released, "something was released")
    return outcome


def active_segment(folder: Path) -> tuple[Path, list[int]]:
    """The last segment, by its name in the log's folder, and where its frames end."""
    path = max((folder / SEGMENTS).iterdir())
    data = path.read_bytes()
    lengths = (int.from_bytes(data[at + 4 : at + 8], "big") for at in _frames(data))
    return path.relative_to(folder), list(accumulate(lengths, initial=segments.HEADER_SIZE))


def _frames(data: bytes) -> Iterator[int]:
    at = segments.HEADER_SIZE
    while data[at : at + 4] == b"TMF1":
        yield at
        at += int.from_bytes(data[at + 4 : at + 8], "big")


def _sizes(folder: Path, path: Path) -> list[int]:
    """How many leaves the log has before the segment's first frame, and after each."""
    data = (folder / path).read_bytes()
    counts = (int.from_bytes(data[at + 16 : at + 20], "big") for at in _frames(data))
    return list(accumulate(counts, initial=int(path.stem)))


def _long_tailed(batch: Batch) -> SmallLog:
    """A log whose active segment has some frames."""
    return SmallLog.make(batch.folder, seals=False)


def _forget_floors(folder: Path) -> None:
    for name in _FLOORS:
        (folder / name).unlink()


@contextmanager
def _flipped(log: SmallLog, copy: str, name: Path, at: int, bit: int) -> Iterator[Path]:
    folder = log.copy(copy)
    data = bytearray((folder / name).read_bytes())
    data[at] ^= 1 << bit
    (folder / name).write_bytes(data)
    try:
        yield folder
    finally:
        remove(folder)


def _noticed(log: SmallLog, folder: Path, name: Path) -> str:
    """How a changed file comes to light; empty where it does not."""
    second = bool(second_reading(folder))
    try:
        with open_log(folder, log.plan) as store:
            keyring_of(folder, store.log_id)
            if store.report.watermark_damaged_slots:
                return "reported by the start"
        with capture_logs() as said:
            Rejections(folder).close()
            Owed(folder).close()
            asyncio.run(_open_outbox(folder / OUTBOX))
        if said:
            return "cut and reported by the start" if name.parent.name == OUTBOX or _kept(folder, name.name) else ""
    except LogDamaged:
        return "refused with exit status 3"
    except OutboxDamaged:
        return "refused as OUTBOX_DAMAGED"
    except StoredLogError as error:
        return f"refused with exit status {error.exit_status}"
    if name.parts[0] == DERIVED:
        return "made anew by the start" if _same(log.folder / name, folder / name) else ""
    if second:
        return "found by the second reading"
    return (
        "refused by whoever knows the witness"
        if name.name == CHECKPOINT_WITNESSED and not _is_witnessed(folder)
        else ""
    )


def _kept(folder: Path, name: str) -> bytes:
    """What of a file was cut, and kept."""
    kept = (folder / LOST_AND_FOUND).glob(f"{Path(name).stem}.*") if (folder / LOST_AND_FOUND).exists() else ()
    return b"".join(path.read_bytes() for path in kept)


async def _open_outbox(folder: Path) -> None:
    async with open_outbox(folder, bytes(32)):
        pass


def _is_witnessed(folder: Path) -> bool:
    try:
        return bool(verify_quorum((folder / CHECKPOINT_WITNESSED).read_bytes(), [WITNESS], 1))
    except (QuorumNotReached, NoteMalformed):
        return False


def _same(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()
