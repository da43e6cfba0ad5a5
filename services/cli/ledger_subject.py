"""It is responsible for a log that a command looks at: its files, or what it serves, asked the same questions."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from libs.audit.log.contents import OnEntry
from libs.audit.log.notes import Key, NoteUnreadable, read_checkpoint
from libs.audit.log.promises import CHECKPOINT, Held
from libs.audit.log.reading import BLOCK_LEAVES, Depth, Question, Reading, read_log
from libs.audit.log.served import ServedQuestion, newest_head, read_served
from libs.audit.log.subtrees import roots_over
from libs.audit.log.tiles import Fetch, TileTree, TileWrong
from libs.audit.log.walk import LogSource
from services.cli.inputs import InputUnreadable, read_input
from services.cli.ledger_files import LogFolder, is_log
from services.cli.ledger_served import fetching, is_url


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
    on_entry: OnEntry | None = None


class Subject(Protocol):
    """A log."""

    def read(self, asked: Asked) -> Reading: ...

    def roots_over(self, origin: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        """Return roots over parts of the tree; for a log that was read without damage."""
        ...


@dataclass(frozen=True, slots=True)
class LogFiles:
    """A log by its files."""

    source: LogSource
    block_leaves: int = BLOCK_LEAVES

    def read(self, asked: Asked) -> Reading:
        depth, sampled = asked.depth, frozenset[int]()
        if asked.sample is not None:
            depth, sampled = Depth.TREE, frozenset(_chosen(asked.sample, self._signed_size()))
        return read_log(
            self.source,
            Question(
                depth=depth,
                sampled=sampled,
                outside=asked.outside,
                sizes=asked.sizes,
                keys=asked.keys,
                tag_key=asked.tag_key,
                on_entry=asked.on_entry,
                block_leaves=self.block_leaves,
            ),
        )

    def roots_over(self, origin: str, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        return roots_over(self.source, origin, self.block_leaves, ranges)

    def _signed_size(self) -> int:
        try:
            return read_checkpoint(self.source.read(CHECKPOINT) or b"").size
        except NoteUnreadable as error:
            raise InputUnreadable(f"there is no signed head to choose entries under: {error}") from error


@dataclass(frozen=True, slots=True)
class ServedLog:
    """A log by what it serves."""

    fetch: Fetch

    def read(self, asked: Asked) -> Reading:
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
