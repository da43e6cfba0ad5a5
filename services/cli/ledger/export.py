"""It is responsible for `teemesh ledger export` and `restore`: a log, or some of its segments, as one bundle, and back.

What is exported was verified first, by the reading that shares no code with the ledger, and is what was verified: heads
are taken before the segments, of a segment that still grows only its frames. A ledger may write meanwhile.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from libs import jcs
from libs.audit.log.entries import PublicEntry
from libs.audit.log.findings import Findings, Status
from libs.audit.log.promises import CHECKPOINTS_LOG, RELEASED
from libs.audit.log.reading import BLOCK_LEAVES, DESCRIPTION, Question, Reading, read_log
from libs.audit.log.records import read_records
from libs.audit.log.segments import first_leaf
from libs.errors import Code, MeshError
from services.cli.ledger.bundle import MANIFEST, OBJECTS, SEGMENTS, Manifest, digest_of, open_bundle
from services.cli.ledger.bundle_writing import writing_archive, writing_folder
from services.cli.ledger.files import LogFolder, add_log_argument, log_folder
from services.cli.ledger.prune import put_back
from services.cli.terminal.inputs import refuse_existing

_POLICY = 4
_RECORD_FRAMING = 40
_ARCHIVE = ".tar"
_EXPORTED = frozenset({Status.SOUND, Status.TORN, Status.GAP})
"""A hole in an issuer's numbers is what an archive must keep, and a torn tail is left out."""


class LogNotSound(MeshError):
    """The log is not what it should be; a bundle of it would be no archive."""

    code = Code.DATA_LOSS
    reason = "LOG_NOT_SOUND"


class EntriesPruned(MeshError):
    """The bodies of tenants' entries there were taken out of this log's files."""

    code = Code.OUT_OF_RANGE
    reason = "ENTRIES_PRUNED"


class RangeWithoutSegment(MeshError):
    """The log has no entries there."""

    code = Code.OUT_OF_RANGE
    reason = "RANGE_WITHOUT_SEGMENT"


def add_export(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh ledger export`."""
    parser.add_argument("bundle", type=Path, metavar="DIR|FILE.tar", help="what to write; must not exist")
    add_log_argument(parser)
    parser.add_argument("--from", type=int, dest="first", default=0, metavar="N", help="from the segment with entry N")
    parser.add_argument("--to", type=int, dest="last", metavar="M", help="to the segment with entry M")
    parser.set_defaults(run=_run_export)


def add_restore(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh ledger restore`."""
    parser.add_argument("bundle", type=Path, metavar="DIR|FILE.tar", help="a bundle")
    parser.add_argument("folder", type=Path, metavar="PATH", help="the folder to make; must not exist")
    parser.add_argument(
        "--pruned", action="store_true", help="put what was pruned back into the log at PATH, whose ledger is stopped"
    )
    parser.set_defaults(run=_run_restore)


def export(source: LogFolder, to: Path, first: int, last: int | None, block_leaves: int = BLOCK_LEAVES) -> Manifest:
    """Write a bundle of the segments that hold entries `first` to `last`, all others left out.

    Raises `LogNotSound`, `RangeWithoutSegment`, `EntriesPruned`, `OutputUnwritable`.
    """
    taken = _Snapshot.take(source)
    gathered = _Gathered()
    reading = read_log(taken, Question(on_entry=gathered.take, block_leaves=block_leaves))
    if reading.findings.worst not in _EXPORTED:
        why = next(each.what for each in reading.findings.wrong if each.status is reading.findings.worst)
        raise LogNotSound(f"verify the log: {why}")
    names = _chosen(reading, first, last)
    held = [name for name in sorted(reading.lengths) if not source.is_bare(name)]
    if names[0] < held[0]:
        raise EntriesPruned(f"entries before {_first(held[0])} are pruned here: begin there (--from)")
    small = {**taken.heads, **gathered.policies, "keys": "".join(f"{key.text()}\n" for key in reading.keys).encode()}
    files = {name: _File(len(data), _of_bytes(data)) for name, data in small.items()}
    for name in names:
        files[SEGMENTS + name] = _File(reading.lengths[name], _of_segment(source, name))
    ends = [*map(_first, sorted(reading.lengths)[1:]), reading.size]
    manifest = Manifest(
        origin=reading.description.origin if reading.description else "",
        first=_first(names[0]),
        size=ends[sorted(reading.lengths).index(names[-1])],
        is_to_end=names[-1] == max(reading.lengths),
        files={name: file.digest() for name, file in files.items()},
    )
    with writing_archive(to) if to.suffix == _ARCHIVE else writing_folder(to) as add:
        for name, file in files.items():
            with file.open() as content:
                add(f"{OBJECTS}/{manifest.files[name]}", content, file.length, manifest.files[name])
        document = manifest.encode()
        add(MANIFEST, io.BytesIO(document), len(document), digest_of(io.BytesIO(document)))
    return manifest


def restore(bundle: Path, folder: Path) -> Manifest:
    """Make a log's folder of a bundle, every file as it was. Raises `BundleMalformed`, `OutputUnwritable`."""
    with open_bundle(bundle) as opened, writing_folder(folder) as add:
        for name, digest in opened.manifest.files.items():
            with opened.objects.open(f"{OBJECTS}/{digest}") as content:
                add(name, content, None, digest)
        return opened.manifest


def _run_export(args: argparse.Namespace) -> int:
    refuse_existing(args.bundle)
    manifest = export(LogFolder(log_folder(args)), args.bundle, args.first, args.last)
    part = f"entries {manifest.first} to {manifest.size - 1}" if manifest.size else "no entries"
    Console().out(f"{args.bundle}: {manifest.origin}, {part}, {len(manifest.files)} files", highlight=False)
    return 0


def _run_restore(args: argparse.Namespace) -> int:
    if args.pruned:
        names = put_back(args.bundle, LogFolder(args.folder))
        Console().out(f"{args.folder}: {len(names)} segments are whole again", highlight=False)
        return 0
    refuse_existing(args.folder)
    manifest = restore(args.bundle, args.folder)
    whole = "" if manifest.first == 0 and manifest.is_to_end else "; only a part, which no ledger starts with"
    told = f"{args.folder}: {manifest.origin} up to {manifest.size}{whole}; its keyring is not in a bundle"
    Console().out(told, highlight=False)
    return 0


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A log's files with the heads that it had at one moment. Implements `LogSource`."""

    source: LogFolder
    heads: dict[str, bytes]

    @classmethod
    def take(cls, source: LogFolder) -> _Snapshot:
        heads = {name: source.read(name) for name in (DESCRIPTION, *RELEASED)}
        log = source.read(CHECKPOINTS_LOG) or b""
        ends = [
            at + len(record) + _RECORD_FRAMING for at, record in read_records(io.BytesIO(log), b"TMCK", "", Findings())
        ]
        found = {name: data for name, data in heads.items() if data is not None}
        return cls(source, {**found, CHECKPOINTS_LOG: log[: max(ends, default=0)]})

    def segments(self) -> Sequence[str]:
        return self.source.segments()

    def is_bare(self, name: str) -> bool:
        return self.source.is_bare(name)

    def open_segment(self, name: str) -> BinaryIO:
        return self.source.open_segment(name)

    def read(self, name: str) -> bytes | None:
        return self.heads.get(name)

    def open_beside(self, name: str) -> BinaryIO | None:
        """A bundle has none: what was refused is no part of the log, and what is owed not yet."""
        return None


@dataclass(slots=True)
class _Gathered:
    """The policies that the log holds."""

    policies: dict[str, bytes] = field(default_factory=dict)

    def take(self, index: int, wall_ns: int, entry: PublicEntry) -> None:
        policy = entry.body.get("policy")
        version = policy.get("version") if isinstance(policy, dict) else None
        if entry.kind == _POLICY and type(version) is int and version >= 0:
            self.policies[f"policy/{version}.json"] = jcs.dumps(dict(entry.body))


@dataclass(frozen=True, slots=True)
class _File:
    length: int
    open: Callable[[], BinaryIO]

    def digest(self) -> str:
        with self.open() as content:
            return digest_of(content, self.length)


def _chosen(reading: Reading, first: int, last: int | None) -> Sequence[str]:
    names = sorted(reading.lengths)
    ends = [*map(_first, names[1:]), reading.size]
    limit = reading.size - 1 if last is None else last
    chosen = [name for name, end in zip(names, ends, strict=True) if end > first and _first(name) <= limit]
    if not chosen:
        raise RangeWithoutSegment(f"the log has {reading.size} entries, none of them from {first} to {limit}")
    return chosen


def _first(name: str) -> int:
    first = first_leaf(name)
    if first is None:
        raise ValueError(f"{name} is no segment")
    return first


def _of_bytes(data: bytes) -> Callable[[], BinaryIO]:
    return lambda: io.BytesIO(data)


def _of_segment(source: LogFolder, name: str) -> Callable[[], BinaryIO]:
    return lambda: source.open_segment(name)
