"""It is responsible for what a start would say of a log, without one: `python -m services.ledger.fsck DIR`.

It reads every byte by the ledger's own code, passes over nothing, and changes nothing. Exit status 0: a start would
serve it; 2: a start would cut a torn tail; 3: damaged; 4: below what was promised; 1: no log, or one that is in use.
Of the keyring it says whether there is one where entries need it, and whether any key could open it: what is in it only
the KMS's key can tell. Of a member's files it reads what it has promised and its copy of the keyring, on which a start
of that member ends, too.
With `--repair-derived` the files that are derived from the segments are removed: the next start makes them anew.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.files import fsync_dir
from services.ledger.intake.owed import NAME as OWED_LOG
from services.ledger.intake.rejections import NAME as QUARANTINE_LOG
from services.ledger.replication.keyring_copy import read_keyring_copy
from services.ledger.replication.promise import FOLDER as REPLICATION
from services.ledger.replication.promise import read_promise
from services.ledger.storage import derived, description, records_log, segments
from services.ledger.storage.damage import LogDamaged, LogLocked, LogRolledBack, StoredLogError
from services.ledger.storage.index import Index
from services.ledger.storage.keyring import KeyringFile
from services.ledger.storage.recovery import Examined, examine
from services.ledger.vaults.erasures import logged_erasures
from services.ledger.vaults.shares import require_shares

CLEAN, TORN = 0, 2
_LOCK = "LOCK"
_DEFAULT = segments.Geometry()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a start would find."""

    exit_status: int
    verdict: str
    what: str
    """For people."""
    size: int | None = None
    """In leaves; None where it could not be told."""
    file: str | None = None
    offset: int | None = None
    """The first byte that is wrong."""

    def members(self) -> dict[str, Any]:
        return {
            "status": self.exit_status,
            "verdict": self.verdict,
            "what": self.what,
            "size": self.size,
            "file": self.file,
            "offset": self.offset,
        }


def check(directory: Path, geometry: segments.Geometry = _DEFAULT) -> Verdict:
    """Examine a log that no ledger has open. Raises `LogMissing` or `LogLocked`."""
    with _unused(directory), tempfile.TemporaryDirectory() as elsewhere:
        try:
            described = description.read(directory)
            # Nothing is derived there yet, so every byte is read.
            found = examine(directory, described.origin, geometry, Index(Path(elsewhere), os.urandom(32)))
            beside = _require_keyring(KeyringFile(directory, described.log_id), directory, found)
            beside += _require_promise(directory)
            _require_records(directory)
        except (LogDamaged, LogRolledBack) as error:
            word = error.reason.removeprefix("LOG_").lower()
            return Verdict(error.exit_status, word, str(error), None, error.file, error.offset)
    scanned, size = found.scanned, found.scanned.head.size
    slots = "".join(f"; slot {slot} of the watermark is no mark" for slot in found.marks.damaged_slots)
    told = f"{size} entries in {scanned.number} segments, at least {found.floor} promised{slots}{beside}"
    if scanned.torn is None:
        return Verdict(CLEAN, "clean", told, size)
    file = segments.file_name(scanned.last_segment)
    torn = f"{file} ends at byte {scanned.torn.start} in something cut short ({scanned.torn.why}); a start removes it"
    return Verdict(TORN, "torn", f"{told}; {torn}", size, file, scanned.torn.damage)


def _require_keyring(keyring: KeyringFile, directory: Path, found: Examined) -> str:
    """Return what is to be said of it. Raises `LogDamaged` where no key opens it, or none is there and entries need it.

    A member's own file is not read by its start, which gives it the copy instead.
    """
    copy = read_keyring_copy(directory)
    if copy is not None:
        return f"; its copy of the keyring is the writer's of epoch {copy.epoch}, generation {copy.generation}"
    epoch = keyring.key_epoch()
    if epoch is not None:
        return f"; the keyring is under epoch {epoch} of its key, which alone can tell what is in it"
    if not (directory / REPLICATION).exists():  # A member of a group is given the keyring by whoever writes.
        index = found.scanned.index
        require_shares(index, logged_erasures(index, found.reader, index.size), lambda vault_id, epoch: False)
    return ""


def _require_promise(directory: Path) -> str:
    """Return what is to be said of it. Raises `LogDamaged` where a member would no longer know what it has promised."""
    promise = read_promise(directory)
    if promise is None:
        return ""
    to = f" to {promise.to}" if promise.to else ""
    return f"; epoch {promise.epoch} is promised{to}, so it starts as a member of its group only"


def _require_records(directory: Path) -> None:
    """Raise `LogDamaged` where what was refused, or what is owed, has changed: a start reads that, too."""
    for name, magic in ((QUARANTINE_LOG, records_log.QUARANTINE), (OWED_LOG, records_log.OWED)):
        records_log.read_each(directory / name, magic, lambda record: None)


def remove_derived(directory: Path) -> int:
    """Remove what the next start makes anew; returns how many files. Raises `LogLocked`."""
    folder = directory / derived.FOLDER
    with _unused(directory):
        names = [entry.path for entry in os.scandir(folder)] if folder.is_dir() else []
        for name in names:
            os.unlink(name)
        if names:
            fsync_dir(folder)
    return len(names)


@contextmanager
def _unused(directory: Path) -> Iterator[None]:
    """Keep a ledger from opening the log meanwhile; beside a writer, half a frame looks torn. Raises `LogLocked`."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # A copy: nobody has ever opened it.
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise LogLocked(f"a ledger has the log in {directory} open: stop it first") from error
    finally:
        os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="services.ledger.fsck", description="What would a start say of this log?")
    parser.add_argument("log", type=Path)
    parser.add_argument("--repair-derived", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    try:
        verdict = check(args.log)
        removed = remove_derived(args.log) if args.repair_derived else None
    except StoredLogError as error:
        sys.stderr.write(f"ledger: {error.reason}: {error}\n")
        return error.exit_status
    if args.json:
        text = json.dumps({**verdict.members(), "derived_removed": removed})
    else:
        text = f"{verdict.verdict}: {verdict.what}"
        if removed is not None:
            text += f"\n{removed} derived files removed; the next start makes them anew"
    sys.stdout.write(text + "\n")
    return verdict.exit_status


if __name__ == "__main__":
    sys.exit(main())
