"""Members of one log in one process and in virtual time, with a network that loses and delays, and what must hold.

The members are the real ones from the follower down to the files; only connections, time and threads are simulated.
Everything follows from a seed. At every step the world is told what was elected, published and acknowledged, and raises
`Broken` at the first contradiction.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any, NoReturn, TypeVar

from libs.errors import Code, MeshError
from libs.transparency.merkle import EMPTY_ROOT, CompactRange
from services.ledger.growth import Growth
from services.ledger.intake.sequencer import Outcome, Sequencer
from services.ledger.replication.allegiance import WriterDeposed
from services.ledger.replication.cutting import cut
from services.ledger.replication.election import Elections
from services.ledger.replication.exchange import Ballot, Heading, Taken, Vote
from services.ledger.replication.follower import Follower
from services.ledger.replication.frame_files import FrameEnd, FrameFiles, Tip
from services.ledger.replication.keyring_copy import NAME, KeyringCopy, KeyringCopyFile
from services.ledger.replication.leading import Leading, begin_epoch
from services.ledger.replication.others import OtherMember
from services.ledger.replication.promise import FOLDER, PromiseFile
from services.ledger.replication.replica import Replica
from services.ledger.replication.settings import MemberAddress, Replication
from services.ledger.storage.store import LogStore
from tests.unit.services.ledger.conftest import DESCRIPTION, SOURCE, candidate, open_store, tag

from .virtual import Disk, Dying

T = TypeVar("T")

_SETTLING_SECONDS = 120.0


class Broken(AssertionError):
    """Something that must never be was."""


class Away(MeshError):
    code = Code.UNAVAILABLE
    reason = "AWAY"


class World:
    """Members, what lies between them, and what anybody was told."""

    def __init__(self, folder: Path, seed: int, count: int, **timings: float) -> None:
        """`timings` are those of the configuration that are not to be its defaults."""
        self.folder = folder
        self.chance = random.Random(seed)  # noqa: S311 - an order, not a secret
        names = [f"m{number}" for number in range(count)]
        self.settings = Replication(tuple(MemberAddress(name, f"{name}:1") for name in names), **timings)
        self.slow_seconds = (0.5, 4.0)
        """How long a slow disk takes for anything."""
        self.members = {name: Simulated(self, name) for name in names}
        self.cut: Counter[tuple[str, str]] = Counter()
        """Which way nothing comes through."""
        self.troubled = True
        """Whether the network loses and delays."""
        self.stream: list[int] = []
        """The numbers of entries, in the order in which the broker has them; some come again."""
        self.seen: Counter[str] = Counter()
        self.leaves: list[bytes] = []
        """Every leaf that ever counted."""
        self.roots = [EMPTY_ROOT]
        self._range = CompactRange()
        self._writers: dict[int, str] = {}
        self._acknowledged: dict[int, int] = {}
        self._made: set[int] = set()
        self._erased: set[int] = set()
        self._shares = 0
        self._wrong: list[BaseException] = []

    # What members are told of one another

    def elected(self, epoch: int, name: str) -> None:
        if self._writers.setdefault(epoch, name) != name:
            raise Broken(f"{name} and {self._writers[epoch]} write in epoch {epoch}")
        self.seen["elected"] += 1

    def began(self, store: LogStore, keyring: Sequence[int]) -> None:
        if store.head.size < len(self.leaves) or store.index.tree.root(len(self.leaves)) != self.roots[-1]:
            raise Broken("a writer begins without what counts")
        if not self._made <= set(keyring):
            raise Broken("a writer begins without a share that was given out")
        if self._erased & set(keyring):
            raise Broken("a writer begins with a share that was erased")
        self.seen["began"] += 1

    def published(self, name: str, size: int, root: bytes) -> None:
        store = self.members[name].store
        if store is None:
            raise Broken(f"{name} publishes, and does not live")
        known = len(self.leaves)
        if size > known:
            if store.index.tree.root(known) != self.roots[known]:
                raise Broken(f"{name} publishes another log than the one that counts")
            for index in range(known, size):
                self.leaves.append(store.index.tree.leaf(index))
                self._range.append(self.leaves[-1])
                self.roots.append(self._range.root())
            self._require_majority(size)
        if self.roots[size] != root:
            raise Broken(f"{name} publishes another tree of {size} leaves")

    def _require_majority(self, size: int) -> None:
        holding = sum(member.holds(size, self.roots[size]) for member in self.members.values())
        if holding < self.settings.majority:
            raise Broken(f"{size} leaves count, and {holding} members hold them")

    def acknowledged(self, number: int, index: int) -> None:
        if self._acknowledged.setdefault(number, index) != index:
            raise Broken(f"entry {number} was acknowledged at {self._acknowledged[number]} and at {index}")
        self.seen["acknowledged"] += 1

    def next_share(self) -> int:
        self._shares += 1
        return self._shares

    def given_out(self, share: int) -> None:
        self._made.add(share)
        self.seen["shares"] += 1

    def to_be_forgotten(self, share: int) -> None:
        self._made.discard(share)

    def forgotten(self, share: int) -> None:
        self._erased.add(share)
        for member in self.members.values():
            # One whose disk was put back had it replaced before that, and has it replaced again.
            if share in member.shares() and not member.asks:
                raise Broken(f"share {share} is erased, and {member.name} has it")
        self.seen["erased"] += 1

    def has_asked(self, member: Simulated) -> None:
        if self._erased & member.shares():
            raise Broken(f"{member.name} was put back, has asked the others, and has a share that was erased")

    # What befalls them

    async def befall(self, seconds: float, lost: int) -> None:
        """Let everything happen, in some order, for a time; then nothing, and see that the log goes on, on all.

        So many members are lost then for good, disks and all, the writer first.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        loop.set_exception_handler(self._failed)
        for member in self.members.values():
            member.start()
        while loop.time() < until:
            await asyncio.sleep(self.chance.expovariate(0.5))
            self._append_some()
            self._some().keep_copy()
            if not any(member.asks for member in self.members.values()):
                self.chance.choice(self._faults)()
            self._require_nothing_wrong()
        self._end_troubles()
        if lost:
            await self._until_settled()
        for _ in range(lost):
            self._append_some()
            await asyncio.sleep(self.chance.random())
            self.lose()
        self.stream.append(10**6)
        await self._until_settled()
        for member in self.members.values():
            member.die()

    def lose(self) -> None:
        """Have a member be no more: the one that writes, where one does."""
        there = [member for member in self.members.values() if not member.is_lost]
        next((each for each in there if each.life and each.life.follower.allegiance.writes), there[0]).lose()

    async def _until_settled(self) -> None:
        async with asyncio.timeout(_SETTLING_SECONDS):
            while not self._is_settled():
                await asyncio.sleep(0.1)
                self._require_nothing_wrong()

    async def begin_slowly(self, slow_seconds: tuple[float, float], seconds: float) -> None:
        """Start all on slow disks, and see that an entry is acknowledged in that time; nothing else befalls them."""
        asyncio.get_running_loop().set_exception_handler(self._failed)
        self.slow_seconds, self.troubled = slow_seconds, False
        self.stream.append(1)
        for member in self.members.values():
            member.slow = True
            member.start()
        async with asyncio.timeout(seconds):
            while not self.seen["acknowledged"]:
                await asyncio.sleep(0.1)
                self._require_nothing_wrong()
        for member in self.members.values():
            member.die()

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take in what nobody waits for: a member that could not start, or ended as it should not."""
        if "exception" in context:
            self._wrong.append(context["exception"])

    def _require_nothing_wrong(self) -> None:
        if self._wrong:
            raise Broken(f"{len(self._wrong)} things went wrong") from self._wrong[0]

    @property
    def _faults(self) -> Sequence[Callable[[], None]]:
        # A disk is put back more often than it can be.
        return (self._kill, self._forget, self._put_back, self._put_back, self._isolate, self._block, self._slow)

    def _append_some(self) -> None:
        for _ in range(self.chance.randrange(4)):
            again = self.chance.random() < 0.2 and self.stream
            self.stream.append(self.chance.choice(self.stream) if again else len(self.stream) + 1)

    def _kill(self) -> None:
        self._some().fail()

    def _forget(self) -> None:
        """Empty a disk: one at a time, the next when all know again what they answered for."""
        if all(member.is_settled for member in self.members.values()):
            self._some().forget()

    def _put_back(self) -> None:
        """Put a disk back to what it was: one at a time, and while the others can tell that member what they know."""
        names = sorted(self.members)
        heard = [name for name in names if not any(self.cut[name, other] + self.cut[other, name] for other in names)]
        if heard and not any(each.life is None or each.lacks for each in self.members.values()):
            self.members[self.chance.choice(heard)].put_back()

    def _isolate(self) -> None:
        name = self._some().name
        self._cut_off(pair for other in self.members for pair in ((name, other), (other, name)))

    def _block(self) -> None:
        """Cut one way between two."""
        one, other = self.chance.sample(sorted(self.members), 2)
        self._cut_off([(one, other)])

    def _cut_off(self, ways: Iterable[tuple[str, str]]) -> None:
        named = Counter(ways)
        self.cut += named
        self._later(lambda: self.cut.subtract(named))

    def _slow(self) -> None:
        member = self._some()
        member.slow = True
        self._later(member.hurry)

    def _later(self, mend: Callable[[], None]) -> None:
        seconds = self.chance.choice((0.5, 3.0, 12.0)) * self.chance.random()
        asyncio.get_running_loop().call_later(seconds, mend)

    def _some(self) -> Simulated:
        """Return whom it befalls: the writer as often as all others."""
        writers = [member for member in self.members.values() if member.life and member.life.follower.allegiance.writes]
        return self.chance.choice(writers if writers and self.chance.random() < 0.5 else list(self.members.values()))

    def _end_troubles(self) -> None:
        self.cut.clear()
        self.troubled = False
        for member in self.members.values():
            member.hurry()

    def _is_settled(self) -> bool:
        stores = [member.store for member in self.members.values() if not member.is_lost]
        ends = {None if store is None else (store.head.size, store.head.frame_hash) for store in stores}
        return self._acknowledged.keys() >= set(self.stream) and len(ends) == 1 and None not in ends

    async def hop(self, one: str, other: str) -> None:
        """Return when a message arrives: soon, late, or never."""
        await asyncio.sleep(self.chance.uniform(0.0005, 0.02))
        if self.troubled and not (self.members[one].asks or self.members[other].asks):
            luck = self.chance.random()
            if luck < 0.02 or self.cut[one, other] > 0:
                await asyncio.Event().wait()
            elif luck < 0.06:
                await asyncio.sleep(self.chance.uniform(0.3, 6.0))


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


class Distant(OtherMember):
    """Another member, over the network."""

    def __init__(self, world: World, caller: str, instance: str) -> None:
        self.instance = instance
        self._world = world
        self._caller = caller

    async def vote(self, ballot: Ballot, *, trial: bool) -> Vote:
        seconds = self._world.settings.election_seconds
        return await self._ask(lambda follower: follower.vote(self._caller, ballot, trial=trial), seconds)

    async def append(self, heading: Heading, data: bytes) -> Taken:
        return await self._ask(lambda follower: follower.take(self._caller, heading, data), 10.0)

    async def keep_keyring(self, copy: KeyringCopy) -> int:
        return await self._ask(lambda follower: follower.keep_keyring(self._caller, copy), 10.0)

    async def read_keyring(self) -> KeyringCopy:
        async def read(follower: Follower) -> KeyringCopy:
            return follower.keyring

        return await self._ask(read, 10.0)

    async def _ask(self, ask: Callable[[Follower], Awaitable[T]], timeout: float) -> T:
        """Ask as over a connection: whoever gives up is not waited for, and what was sent arrives all the same."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        sending = asyncio.ensure_future(self._send(ask, answer))
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError as error:
            raise Away(f"{self.instance} does not answer") from error
        finally:
            self._world.seen["calls"] += 1
            sending.add_done_callback(_forget_outcome)

    async def _send(self, ask: Callable[[Follower], Awaitable[T]], answer: asyncio.Future[T]) -> None:
        await self._world.hop(self._caller, self.instance)
        life = self._world.members[self.instance].life
        if life is not None:
            life.spawn(self._answer(life, ask, answer))

    async def _answer(self, life: Life, ask: Callable[[Follower], Awaitable[T]], answer: asyncio.Future[T]) -> None:
        try:
            result = await ask(life.follower)
        except MeshError as error:
            await self._world.hop(self.instance, self._caller)
            if not answer.done():
                answer.set_exception(error)
        else:
            await self._world.hop(self.instance, self._caller)
            if not answer.done():
                answer.set_result(result)


def _forget_outcome(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _shares(content: bytes) -> list[int]:
    shares: list[int] = json.loads(content or b"[]")
    return shares
