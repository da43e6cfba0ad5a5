"""The world of a simulated log: a network that loses and delays, what befalls members, and what must hold.

Everything follows from a seed. At every step the world is told what was elected, published and acknowledged, and raises
`Broken` at the first contradiction.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from libs.transparency.merkle import EMPTY_ROOT, CompactRange
from services.ledger.replication.settings import MemberAddress, Replication
from services.ledger.storage.store import LogStore

from .broken import Broken
from .simulated import Simulated

_SETTLING_SECONDS = 120.0


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
