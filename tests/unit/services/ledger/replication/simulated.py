"""A member of a log in one process and in virtual time.

It is the real one from the follower down to the files; only connections, time and threads are simulated.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import copytree, rmtree
from typing import TYPE_CHECKING, NoReturn, TypeVar

from libs.transparency.merkle import EMPTY_ROOT
from services.ledger.growth import Growth
from services.ledger.intake.sequencer import Outcome, Sequencer
from services.ledger.replication.allegiance import WriterDeposed
from services.ledger.replication.cutting import cut
from services.ledger.replication.election import Elections
from services.ledger.replication.follower import Follower
from services.ledger.replication.frame_files import FrameEnd, FrameFiles, Tip
from services.ledger.replication.keyring_copy import NAME, KeyringCopyFile
from services.ledger.replication.leading import Leading, begin_epoch
from services.ledger.replication.promise import FOLDER, PromiseFile
from services.ledger.replication.replica import Replica
from services.ledger.storage.store import LogStore
from tests.unit.services.ledger.conftest import DESCRIPTION, SOURCE, candidate, open_store, tag

from .broken import Broken
from .distant import Distant
from .virtual import Disk, Dying

if TYPE_CHECKING:
    from .world import World

T = TypeVar("T")


class Simulated:
    """One member: a folder, and one process after another on it."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self.name = name
        self.slow = False
        self.store: LogStore | None = None
        self.life: Life | None = None
        self.is_lost = False
        self._held: tuple[int, list[bytes]] = (0, [EMPTY_ROOT])
        self._folder = world.folder / name
        self._copy = world.folder / f"{name}-copy"
        self._forgotten = 0
        self._is_emptied = False
        """Whether it lacks what it had: its disk was emptied, or put back."""
        self._is_put_back = False

    @property
    def is_settled(self) -> bool:
        if self.life is None or not self.life.follower.settled or not self.life.follower.allegiance.is_informed:
            return False
        self._is_emptied = False
        return True

    @property
    def lacks(self) -> bool:
        """Whether it lacks what it had, or may."""
        return self._is_emptied and not self.is_settled

    @property
    def asks(self) -> bool:
        """Whether its disk was put back, and it has not heard of the others what it may have forgotten."""
        if self._is_put_back and self.life is not None and self.life.follower.allegiance.is_informed:
            self._is_put_back = False
            self._world.has_asked(self)
        return self._is_put_back

    def hurry(self) -> None:
        """Have a disk as fast as others."""
        self.slow = False

    def lose(self) -> None:
        """Die for good."""
        self.is_lost = True
        self.die()
        self._world.seen["lost"] += 1

    def start(self) -> None:
        """Begin a process on what the one before left."""
        if self.is_lost:
            return
        if not self._folder.exists():
            LogStore.create(self._folder, DESCRIPTION)
        self.store = open_store(self._folder)
        self.life = Life(self._world, self, self.store)

    def fail(self) -> None:
        """Kill the process, and start another in a while."""
        if self.life is not None:
            self.die()
            self._world.seen["killed"] += 1
            asyncio.get_running_loop().call_later(self._world.chance.expovariate(1.0), self.start)

    def forget(self) -> None:
        """Lose the disk, and the process with it."""
        if self.life is not None:
            self.fail()
            self._forgotten += 1
            self._folder.rename(self._folder.with_name(f"{self.name}-{self._forgotten}"))
            self._is_emptied = True
            self._world.seen["disks lost"] += 1

    def keep_copy(self) -> None:
        """Keep what the disk has now."""
        if self.life is not None:
            rmtree(self._copy, ignore_errors=True)
            copytree(self._folder, self._copy)

    def put_back(self) -> None:
        """Put the disk back to what was kept of it last, while the process is away."""
        if self.life is not None and self._copy.exists():
            self.fail()
            rmtree(self._folder)
            copytree(self._copy, self._folder)
            self._is_emptied = self._is_put_back = True
            self._world.seen["put back"] += 1

    def shares(self) -> set[int]:
        """Every share that is on the disk."""
        found: set[int] = set()
        for path in (self._folder / NAME, self._folder / FOLDER / NAME):
            if path.exists():
                content = path.read_bytes()
                found |= set(
                    _shares(content[content.index(b"[") : content.index(b"]") + 1] if b"[" in content else b"")
                )
        return found

    def die(self) -> None:
        if self.life is not None and self.store is not None:
            size = self.store.head.size
            self._held = (size, [self.store.index.tree.root(each) for each in range(size + 1)])
            self.life.die()
            with suppress(Dying):
                self._close(self.store)
            self.life = self.store = None

    def holds(self, size: int, root: bytes) -> bool:
        """Whether the disk has the tree, or may have had it before it was lost."""
        if self.lacks:
            return True
        if self.store is not None:
            return self.store.head.size >= size and self.store.index.tree.root(size) == root
        return self._held[0] >= size and self._held[1][size] == root

    def _close(self, store: LogStore) -> None:
        """As the end of a process does: without a footer."""
        with store:
            raise Dying


class Life:
    """One process of a member."""

    def __init__(self, world: World, member: Simulated, store: LogStore) -> None:
        loop = asyncio.get_running_loop()
        self._world = world
        self._member = member
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()
        self._disk = Disk(world.chance, member.fail, world.slow_seconds)
        self._files = FrameFiles(store)
        self._keyring_file = KeyringCopyFile(store.directory)
        self._growth = Told(lambda size, root: world.published(member.name, size, root))
        self.follower = Follower(
            member.name,
            PromiseFile(store.directory),
            Replica(store, self._cut),
            self._keyring_file,
            self._growth,
            self._disk,
            last_epoch=store.last_epoch,
            patience_seconds=world.settings.election_seconds,
            clock=loop.time,
        )
        self.spawn(self._live())

    def spawn(self, work: Awaitable[None]) -> None:
        """Do something until it ends, or the process does."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def die(self) -> None:
        self._disk.die()
        for task in self._tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            raise Broken("a member ended as it should not") from task.exception()

    def _cut(self, directory: Path, end: FrameEnd, tip: Tip) -> NoReturn:
        cut(directory, end, tip)
        self._world.seen["taken back"] += 1
        raise Dying

    async def _live(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.follower.allegiance.until_ended())
                tasks.create_task(self._write_when_elected())
                while True:
                    self._disk.slow = self._member.slow
                    await asyncio.sleep(0.2)
        except* WriterDeposed:
            self._world.seen["deposed"] += 1
            self._member.fail()

    async def _write_when_elected(self) -> None:
        world, name, settings = self._world, self._member.name, self._world.settings
        others = [Distant(world, name, each.instance) for each in settings.others(name)]
        clock = asyncio.get_running_loop().time
        elected = await Elections(settings, self.follower, others, clock).until_elected()
        world.elected(elected.epoch, name)
        first = await self._in_thread(lambda: begin_epoch(self._store, self._files, elected.epoch))
        leading = Leading(
            name,
            settings,
            elected,
            first,
            follower=self.follower,
            others=others,
            files=self._files,
            keyring_file=self._keyring_file,
            growth=self._growth,
            clock=clock,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(leading.run())
            await leading.until_begun()
            world.began(self._store, _shares(self._keyring_file.writers_own()))
            tasks.create_task(self._write(leading, elected.epoch))
            # As a call that is answered while the process ends.
            self.spawn(self._change_keyring(leading))

    async def _write(self, leading: Leading, epoch: int) -> None:
        sequencer = Sequencer(self._store, epoch=epoch, tag=tag, clock=lambda: 7_000_000_000)
        for number in self._world.stream:
            # Who waits for an answer that an earlier writer did not live to give asks again.
            index = self._store.index.index_of(candidate(number).issuer, number)
            if index is not None:
                self._world.acknowledged(number, index)
        while True:
            low = self._store.head.source_high
            numbers = self._world.stream[low : low + self._world.chance.randint(1, 4)]
            if numbers:
                await self._commit(leading, sequencer, numbers, low + 1)
            else:
                await asyncio.sleep(0.1)

    async def _commit(self, leading: Leading, sequencer: Sequencer, numbers: Sequence[int], low: int) -> None:
        verdicts = sequencer.judge([candidate(number) for number in numbers])
        new = [verdict.candidate for verdict in verdicts if verdict.outcome is Outcome.NEW]
        await self._in_thread(lambda: sequencer.append(new, SOURCE, low, low + len(numbers) - 1))
        await leading.held()
        self._growth.reach(self._store.head.size, self._store.head.root())
        for number, verdict in zip(numbers, verdicts, strict=True):
            self._world.acknowledged(number, verdict.index)

    async def _change_keyring(self, leading: Leading) -> None:
        """Make a share, or erase one, by and by."""
        chance, path = self._world.chance, self._store.directory / "keyring"
        generation = leading.keyring.generation
        while True:
            await asyncio.sleep(chance.expovariate(0.7))
            shares, generation = _shares(self._keyring_file.writers_own()), generation + 1
            erased = chance.choice(shares) if shares and chance.random() < 0.3 else None
            made = self._world.next_share() if erased is None else None
            left = [share for share in [*shares, made] if share not in (erased, None)]
            if erased is not None:
                self._world.to_be_forgotten(erased)
            path.write_bytes(json.dumps(left).encode())
            await leading.share(generation)
            if made is not None:
                self._world.given_out(made)
            elif erased is not None:
                await leading.forgotten()
                self._world.forgotten(erased)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)


class Told(Growth):
    """Says what it is told."""

    def __init__(self, tell: Callable[[int, bytes], None]) -> None:
        super().__init__(0, EMPTY_ROOT, is_all=lambda: False)
        self._tell = tell

    def reach(self, size: int, root: bytes) -> None:
        self._tell(size, root)
        super().reach(size, root)


def _shares(content: bytes) -> list[int]:
    shares: list[int] = json.loads(content or b"[]")
    return shares
