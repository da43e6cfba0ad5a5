"""It is responsible for a log that a command looks at: its files, or what it serves, asked the same questions."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from libs.audit.log.description import read_description
from libs.audit.log.findings import BytesWrong, Status
from libs.audit.log.notes import Key, NoteUnreadable, read_checkpoint
from libs.audit.log.promises import CHECKPOINT, CHECKPOINT_WITNESSED, Held
from libs.audit.log.reading import BLOCK_LEAVES, DESCRIPTION, Depth, Part, Question, Reading, read_log
from libs.audit.log.served import ServedQuestion, newest_head, read_served
from libs.audit.log.subtrees import roots_over
from libs.audit.log.tiles import Fetch, TileTree, TileWrong
from libs.audit.log.walk import LogSource
from libs.errors import Code, MeshError
from libs.policy.signatures import SignedPolicy
from services.cli.ledger.admissions import PolicyJudge
from services.cli.ledger.bundle import Bundle, is_bundle, open_bundle
from services.cli.ledger.files import LogFolder, is_log
from services.cli.ledger.served import fetching, is_url
from services.cli.terminal.inputs import InputUnreadable, read_input


class PolicyNeedsEntries(MeshError):
    """What a log serves to everybody holds no entries, so no writer can be judged by it."""

    code = Code.INVALID_ARGUMENT
    reason = "POLICY_NEEDS_ENTRIES"


class PartOfLog(MeshError):
    """The bundle does not begin with the log's first entry, so nothing about what came before can be proven by it."""

    code = Code.OUT_OF_RANGE
    reason = "PART_OF_LOG"


@dataclass(frozen=True, slots=True)
class Auditor:
    """What an auditor brings to judge a log's writers by."""

    policy: SignedPolicy
    mesh_ca: bytes
    """The mesh CA's certificate, DER."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command asks of a log."""

    depth: Depth = Depth.FULL
    sample: int | None = None
    """Of how many entries, chosen at random, the content is read; None for as many as `depth` says."""
    keys: tuple[Key, ...] = ()
    outside: Sequence[Held] = ()
    sizes: frozenset[int] = frozenset()
    tag_key: bytes | None = None
    auditor: Auditor | None = None


class Subject(Protocol):
    """A log."""

    def read(self, asked: Asked) -> Reading: ...

    def witnessed(self) -> bytes | None:
        """Return the newest head that witnesses have cosigned, unproven; before `read`, which must reach it."""
        ...

    def roots_over(self, origin: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        """Return roots over parts of the tree; for a log that was read without damage."""
        ...


@dataclass(frozen=True, slots=True)
class LogFiles:
    """A log by its files."""

    source: LogSource
    block_leaves: int = BLOCK_LEAVES
    part: Part | None = None

    def read(self, asked: Asked) -> Reading:
        depth, sampled = asked.depth, frozenset[int]()
        if asked.sample is not None:
            depth, sampled = Depth.TREE, frozenset(_chosen(asked.sample, self._signed_size()))
        judge = None if asked.auditor is None else self._judge(asked.auditor)
        reading = read_log(
            self.source,
            Question(
                depth=depth,
                sampled=sampled,
                outside=asked.outside,
                sizes=asked.sizes,
                keys=asked.keys,
                tag_key=asked.tag_key,
                on_entry=None if judge is None else judge.take,
                part=self.part,
                block_leaves=self.block_leaves,
            ),
        )
        if judge is None:
            reading.findings.remark("keys and writers are the log's own word: hold them against policy (--policy)")
        else:
            judge.finish(reading.findings)
        return reading

    def witnessed(self) -> bytes | None:
        return self.source.read(CHECKPOINT_WITNESSED)

    def roots_over(self, origin: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        return roots_over(self.source, origin, self.block_leaves, ranges)

    def _judge(self, auditor: Auditor) -> PolicyJudge:
        """Raises `InputUnreadable`."""
        try:
            description = read_description(self.source.read(DESCRIPTION) or b"")
        except BytesWrong as error:
            raise InputUnreadable(f"{DESCRIPTION} does not say whose policy the log began with: {error}") from error
        return PolicyJudge(description, auditor.policy, auditor.mesh_ca)

    def _signed_size(self) -> int:
        try:
            return read_checkpoint(self.source.read(CHECKPOINT) or b"").size
        except NoteUnreadable as error:
            raise InputUnreadable(f"there is no signed head to choose entries under: {error}") from error


@dataclass(frozen=True, slots=True)
class BundledLog:
    """A log, or a part of one, by a bundle of its files."""

    bundle: Bundle

    def read(self, asked: Asked) -> Reading:
        manifest = self.bundle.manifest
        reading = LogFiles(self.bundle, part=Part(manifest.first, manifest.is_to_end)).read(asked)
        for name in self.bundle.wrong():
            reading.findings.add(Status.DAMAGED, name, None, "it is not what the bundle's manifest says")
        return reading

    def witnessed(self) -> bytes | None:
        return self.bundle.read(CHECKPOINT_WITNESSED)

    def roots_over(self, origin: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        if self.bundle.manifest.first:
            raise PartOfLog("the bundle begins in the middle of the log: what came before cannot be shown")
        return LogFiles(self.bundle).roots_over(origin, ranges)


@dataclass(frozen=True, slots=True)
class ServedLog:
    """A log by what it serves."""

    fetch: Fetch

    def read(self, asked: Asked) -> Reading:
        if asked.auditor is not None:
            raise PolicyNeedsEntries("give the log's files: what is served holds no entries")
        sampled = None
        if asked.sample is not None:
            try:
                sampled = _chosen(asked.sample, newest_head(self.fetch).size)
            except TileWrong:
                sampled = ()  # What is wrong with the head is the reading's to say.
        return read_served(
            self.fetch,
            ServedQuestion(
                keys=asked.keys,
                with_leaves=asked.depth is Depth.FULL,
                sampled=sampled,
                outside=asked.outside,
                sizes=asked.sizes,
                tag_key=asked.tag_key,
            ),
        )

    def witnessed(self) -> bytes | None:
        return self.fetch(CHECKPOINT_WITNESSED)

    def roots_over(self, origin: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        return TileTree(self.fetch, newest_head(self.fetch).size).roots_over(ranges)


@dataclass(frozen=True, slots=True)
class Opening:
    """How logs that a command names are reached."""

    ca: Path | None = None
    timeout_seconds: float = 15.0
    files: Callable[[LogSource], Subject] = LogFiles

    @contextmanager
    def subject(self, name: str) -> Iterator[Subject]:
        """Give the log at a path or URL. Raises `InputUnreadable`."""
        if is_url(name):
            with fetching(name, self.ca, self.timeout_seconds) as fetch:
                yield ServedLog(fetch)
            return
        path = Path(name)
        if is_bundle(path):
            with open_bundle(path) as bundle:
                yield BundledLog(bundle)
            return
        if not path.is_dir() or not is_log(path):
            raise InputUnreadable(f"{path} holds no log")
        yield self.files(LogFolder(path))


def read_head(path: Path) -> Held:
    """Return the signed head in a file, unproven. Raises `InputUnreadable`."""
    try:
        return Held(path.name, None, read_checkpoint(read_input(path)))
    except NoteUnreadable as error:
        raise InputUnreadable(f"{path} is no signed head of a log: {error}") from error


def _chosen(count: int, size: int) -> Sequence[int]:
    return secrets.SystemRandom().sample(range(size), min(count, size))
