"""It is responsible for pruning a log that no ledger has open: `python -m services.ledger.pruning DIR`.

Every byte is verified before any is taken away. A segment is pruned if the log says so, in a signed tree, no vault in
it is held, and what it holds is either erased or, byte for byte, in every archive that standard input names: a JSON
list with an object for each, of SHA-256 by segment. One that is in no archive refuses them all; one that is held only
stays. With `--put-back FIRST` a pruned segment's whole file is read from standard input and put in its place again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from libs import jcs
from libs.errors import Code, MeshError
from libs.events.vault import PUBLIC_VAULT_ID
from services.ledger.storage import description, segments
from services.ledger.storage.bare import make_bare, make_whole
from services.ledger.storage.damage import StoredLogError
from services.ledger.storage.index import Index
from services.ledger.storage.pieces import SealedUnder
from services.ledger.storage.recovery import Examined, examine, read_signed
from services.ledger.storage.segment_files import BARE, SEGMENTS
from services.ledger.storage.store import lock_log
from services.ledger.vaults.erasures import Erasures, logged_erasures

REFUSED = 1
_DEFAULT = segments.Geometry()

Archive = Mapping[str, str]
"""SHA-256 of the archived copy of each segment, by file name."""


class PruneNotOrdered(MeshError):
    """No entry in a signed tree of this log says that it may be pruned."""

    reason = "PRUNE_NOT_ORDERED"


class SegmentNotArchived(MeshError):
    """An archive lacks the segment, or has another, or none was named, and not all in it is erased."""

    reason = "SEGMENT_NOT_ARCHIVED"


class SegmentNotPruned(MeshError):
    """There is nothing to put back."""

    code = Code.NOT_FOUND
    reason = "SEGMENT_NOT_PRUNED"


class ArchivesMalformed(MeshError):
    """Standard input names no archives."""

    code = Code.INVALID_ARGUMENT
    reason = "ARCHIVES_MALFORMED"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the segments that the log allows to be pruned, by file name."""

    pruned: tuple[str, ...]
    held: tuple[str, ...]
    """They have entries of vaults under a hold, of which nothing goes."""


def prune(directory: Path, archives: Sequence[Archive], geometry: segments.Geometry = _DEFAULT) -> Outcome:
    """Prune what may be pruned. Raises `StoredLogError`, `PruneNotOrdered`, `SegmentNotArchived`."""
    with _locked(directory), tempfile.TemporaryDirectory() as elsewhere:
        index = Index(Path(elsewhere), os.urandom(32))
        examined = examine(directory, description.read(directory).origin, geometry, index=index)
        signed = _signed_size(directory)
        limit = _limit(examined, signed)
        # What no signed tree holds may be lost again: it keeps bodies, and takes none.
        written, erasures = (logged_erasures(index, examined.reader, size) for size in (index.size, signed))
        chosen = [each for each in index.files if each.end <= limit and each.first not in examined.scanned.bare]
        going, held = [], []
        for each in chosen:
            parts = [part for part in each.sealed_under() if part.vault_id != PUBLIC_VAULT_ID]
            if any(said.is_held(part.vault_id) for part in parts for said in (written, erasures)):
                held.append(segments.file_name(each.first))
            elif parts:
                _require_spared(directory, each.first, parts, erasures, archives)
                going.append(each.first)
        for first in going:
            make_bare(directory, first)
    return Outcome(tuple(map(segments.file_name, going)), tuple(held))


def put_back(directory: Path, first: int) -> None:
    """Put a pruned segment's whole file, from standard input, back. Raises `StoredLogError`, `SegmentNotPruned`."""
    with _locked(directory):
        if not (directory / BARE / segments.file_name(first)).exists():
            raise SegmentNotPruned(f"no bare segment begins at entry {first}")
        make_whole(directory, first, sys.stdin.buffer)


def _signed_size(directory: Path) -> int:
    newest = read_signed(directory).newest
    return 0 if newest is None else newest.size


def _limit(examined: Examined, signed: int) -> int:
    """Return before which entry bodies may go, by what a signed tree holds."""
    prunings = examined.prunings
    limits = [limit for limit, entry in zip(prunings.limits, prunings.entries, strict=True) if entry < signed]
    if not limits:
        raise PruneNotOrdered("no entry in a signed tree of this log says that it may be pruned: have it ordered")
    return max(limits)


def _require_spared(
    directory: Path, first: int, parts: Sequence[SealedUnder], erasures: Erasures, archives: Sequence[Archive]
) -> None:
    """Raise `SegmentNotArchived` unless nobody can miss the bodies: all erased, or all in every archive."""
    closing = [erasures.closing(part.vault_id, part.epoch) for part in parts]
    if all(each is not None and each.done is not None for each in closing):
        return
    name = segments.file_name(first)
    with (directory / SEGMENTS / name).open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if not archives or any(archive.get(name) != digest for archive in archives):
        raise SegmentNotArchived(f"{name} is not in every archive as it is here: export it; nothing is pruned")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    lock = lock_log(directory)
    try:
        yield
    finally:
        os.close(lock)


def _read_archives(data: bytes) -> list[Archive]:
    try:
        value = jcs.loads(data)
    except jcs.JsonMalformed as error:
        raise ArchivesMalformed(f"the archives are {error}") from error
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ArchivesMalformed("a list of objects is wanted")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="services.ledger.pruning", description="Prune a log that is not open.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--put-back", type=int, metavar="FIRST")
    args = parser.parse_args(arguments)
    try:
        if args.put_back is not None:
            put_back(args.log, args.put_back)
            return 0
        outcome = prune(args.log, _read_archives(sys.stdin.buffer.read()))
    except MeshError as error:
        sys.stderr.write(f"ledger: {error.reason}: {error}\n")
        return error.exit_status if isinstance(error, StoredLogError) else REFUSED
    sys.stdout.write(json.dumps({"pruned": outcome.pruned, "held": outcome.held}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
