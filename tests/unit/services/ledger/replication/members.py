"""A member of a group without its connections: a log, its promise, and a clock that tests move."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from services.ledger.intake.sequencer import Sequencer
from services.ledger.replication.exchange import Ballot, Heading
from services.ledger.replication.follower import Follower
from services.ledger.replication.frame_files import LOG_START, FrameEnd, FrameFiles, FrameName
from services.ledger.replication.group import signed_growth
from services.ledger.replication.keyring_copy import KeyringCopyFile
from services.ledger.replication.promise import PromiseFile
from services.ledger.replication.replica import Replica
from services.ledger.storage.store import LogStore
from tests.unit.services.ledger.conftest import DESCRIPTION, SOURCE, candidate, open_store, tag

PATIENCE = 10.0


class Clock:
    """Seconds, as a test wants them."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Writer:
    """Another member's log, to be sent."""

    def __init__(self, store: LogStore, epoch: int = 1) -> None:
        self.store = store
        self.files = FrameFiles(store)
        self._epoch = epoch

    def write(self, *frames: list[int], epoch: int | None = None) -> None:
        """Append entries by number, one frame each; an empty one moves the position alone."""
        sequencer = Sequencer(self.store, epoch=epoch or self._epoch, tag=tag, clock=lambda: 7_000_000_000)
        for numbers in frames:
            position = self.store.head.source_high + 1
            sequencer.append([candidate(number) for number in numbers], SOURCE, position, position)

    @property
    def end(self) -> FrameEnd:
        return self.files.last()

    @property
    def first(self) -> FrameEnd:
        """The end of the first frame."""
        return self.files.following(self.at(LOG_START))

    def at(self, name: FrameName) -> FrameEnd:
        found = self.files.find(name, self.end)
        assert found is not None
        return found

    def after(self, name: FrameName = LOG_START) -> bytes:
        """The bytes of every frame after one."""
        return self.files.read(self.at(name), self.end, 1 << 30)[0]


class Member:
    """One member, as others meet it."""

    def __init__(self, store: LogStore, thread: ThreadPoolExecutor, own: str = "one") -> None:
        self.store = store
        self.clock = Clock()
        self.growth = signed_growth(store.directory)
        self.files = FrameFiles(store)
        self.keyring_file = KeyringCopyFile(store.directory)
        self.follower = Follower(
            own,
            PromiseFile(store.directory),
            Replica(store),
            self.keyring_file,
            self.growth,
            thread,
            last_epoch=store.last_epoch,
            patience_seconds=PATIENCE,
            clock=self.clock,
        )

    def wait(self) -> None:
        """Let so much time go by that no writer has this member's allegiance any more."""
        self.clock.now += PATIENCE

    @property
    def end(self) -> FrameName:
        return self.files.last().name


@contextmanager
def writer_at(directory: Path, epoch: int = 1) -> Iterator[Writer]:
    """A log in a folder, made where there is none."""
    if not directory.exists():
        LogStore.create(directory, DESCRIPTION)
    with open_store(directory) as store:
        yield Writer(store, epoch)


@contextmanager
def member_at(directory: Path, own: str = "one") -> Iterator[Member]:
    """A member with its log in a folder, made where there is none. For a running event loop."""
    if not directory.exists():
        LogStore.create(directory, DESCRIPTION)
    with open_store(directory) as store, ThreadPoolExecutor(1) as thread:
        yield Member(store, thread, own)


def heading(epoch: int, previous: FrameName = LOG_START, *, committed: int = 0, begun: bool = False) -> Heading:
    return Heading(epoch, previous, committed, begun)


def ballot(epoch: int, *, last_epoch: int = 0, size: int = 0) -> Ballot:
    return Ballot(epoch, last_epoch, size)
