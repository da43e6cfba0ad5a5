"""It is responsible for a ledger that is kept down by a damaged file beside its log: `python -m
services.ledger.set_aside DIR owed.log` sets it aside, and the log says so.

The whole file stays in `lost+found/`. Of its records, those that are whole stay where they are, before the damage and
after it; of what is owed, those that were not said yet. What was damaged is gone from the ledger's work, and its
own entry, which it owes the log from then on, names the file, its digest and the place. No file of the log itself, nor
of what was promised of it, is ever set aside.

Exit status 0: a start takes the file; 2: a start cuts its torn tail by itself; 3: another file is damaged, and comes
first; 1: no log, one that is in use, or no file that may be set aside; 70: a write failed. Whatever ends it, the same
order given again goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from libs.errors import Code, MeshError
from libs.files import remove_drafts, writing_durably
from services.ledger.intake import faults, owed
from services.ledger.intake.owed import NAME as OWED_LOG
from services.ledger.intake.rejections import NAME as QUARANTINE_LOG
from services.ledger.storage import description, lost_and_found, records_log
from services.ledger.storage.damage import LogBroken, LogDamaged, StoredLogError
from services.ledger.storage.lost_and_found import Kept
from services.ledger.storage.store import lock_log

WHOLE, REFUSED, TORN = 0, 1, 2
_MAGICS = {OWED_LOG: records_log.OWED, QUARANTINE_LOG: records_log.QUARANTINE}
_DRAFTS = re.compile("|".join(map(re.escape, _MAGICS)))


class FileNotSetAside(MeshError):
    """The file is the log itself, or what was promised of it, or none that a ledger keeps."""

    code = Code.INVALID_ARGUMENT
    reason = "FILE_NOT_SET_ASIDE"


@dataclass(frozen=True, slots=True)
class SetAside:
    """What became of a damaged file."""

    file: str
    kept: Kept
    """All of it, as it was."""
    damaged_at: int
    """The first byte of it that is no record."""
    records: int
    """How many are in the file that is there now, but for the one that says this."""

    def members(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "damaged_at": self.damaged_at,
            "size": self.kept.size,
            "sha256": self.kept.digest,
            "kept_as": str(self.kept.path),
            "records_kept": self.records,
        }


def set_aside(directory: Path, name: str) -> SetAside | None:
    """Put a file in place that a start takes; None where it takes the one that is there, but perhaps a torn tail.

    Nobody has it until the log is sure to say so. Raises `FileNotSetAside`; `LogMissing` or `LogLocked`; `LogDamaged`
    where `owed.log` is to be set aside first; `LogBroken`.
    """
    if name not in _MAGICS:
        raise FileNotSetAside(f"only {' and '.join(_MAGICS)} may be set aside: restore any other file")
    description.read(directory)
    try:
        with ExitStack() as closing_lock:
            closing_lock.callback(os.close, lock_log(directory))
            remove_drafts(directory, _DRAFTS)
            lost_and_found.remove_unfinished(directory)
            return _set_aside(directory, name)
    except OSError as error:
        raise LogBroken(f"{name} could not be set aside: {error.strerror}; give the order again") from error


def _set_aside(directory: Path, name: str) -> SetAside | None:
    path = directory / name
    try:
        records_log.read_each(path, _MAGICS[name], lambda record: None)
    except LogDamaged as error:
        damaged_at = error.offset
    else:
        return None
    kept = lost_and_found.keep_whole(directory, path)
    if name == OWED_LOG:
        records = sum(1 for _ in owed.unsaid(path))
        said = owed.stored(faults.set_aside(name, kept, damaged_at, records))
        _replace(path, records_log.OWED, chain(owed.unsaid(path), [said]))
    else:
        records = sum(1 for _ in records_log.read_whole(path, records_log.QUARANTINE))
        said = owed.stored(faults.set_aside(name, kept, damaged_at, records))
        # First: once the file is whole, nothing else asks for this to be said.
        _owe_once(directory / OWED_LOG, said)
        whole = records_log.read_whole(path, records_log.QUARANTINE)
        _replace(path, records_log.QUARANTINE, (record for _, record in whole))
    return SetAside(name, kept, damaged_at, records)


def _replace(path: Path, magic: bytes, records: Iterable[bytes]) -> None:
    """Each record is as if synced alone, so that damage of any of them is told from a write that was cut short."""
    with writing_durably(path) as file:
        for record in records:
            file.write(records_log.encode(magic, record))


def _owe_once(path: Path, said: bytes) -> None:
    """Owe an entry, unless an earlier try did."""
    owes = [False]

    def look(record: bytes) -> None:
        owes[0] |= record == said

    end = records_log.read_each(path, records_log.OWED, look)
    if not owes[0]:
        with closing(records_log.RecordsLog(path, records_log.OWED, end)) as file:
            if file.saved is not None:
                sys.stderr.write(f"ledger: {path.name} ended in a write that was cut short: kept as {file.saved}\n")
            file.append([said])


def _torn(directory: Path, name: str) -> bool:
    """Whether a file that is not damaged ends in a write that was cut short."""
    path = directory / name
    end = records_log.read_each(path, _MAGICS[name], lambda record: None)
    return path.exists() and path.stat().st_size > end


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="services.ledger.set_aside", description="Let a ledger start without a damaged file beside its log."
    )
    parser.add_argument("log", type=Path)
    parser.add_argument("file", help=" or ".join(_MAGICS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    try:
        done = set_aside(args.log, args.file)
        status = TORN if done is None and _torn(args.log, args.file) else WHOLE
    except MeshError as error:
        sys.stderr.write(f"ledger: {error.reason}: {error}\n")
        return error.exit_status if isinstance(error, StoredLogError) else REFUSED
    if args.json:
        text = json.dumps({"status": status, "set_aside": None if done is None else done.members()})
    elif done is not None:
        text = (
            f"{done.file} was damaged at byte {done.damaged_at}: all its {done.kept.size} bytes are set aside as "
            f"{done.kept.path}\n{done.records} of its records are still in it; the log will say so"
        )
    elif status == TORN:
        text = f"{args.file} ends in a write that was cut short: a start keeps and cuts that by itself"
    else:
        text = f"{args.file} is whole, or not there: nothing was set aside"
    sys.stdout.write(text + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
