"""Members of one group in one process: each has its own log, promise and thread, and they call one another directly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import copytree, rmtree

from libs.errors import Code, MeshError
from services.ledger.replication.election import Elections
from services.ledger.replication.exchange import Ballot, Heading, Taken, Vote
from services.ledger.replication.keyring_copy import KeyringCopy
from services.ledger.replication.leading import Elected, Leading, begin_epoch
from services.ledger.replication.others import OtherMember
from services.ledger.replication.settings import MemberAddress, Replication
from services.ledger.storage.frames import FrameDamaged

from .members import Member, member_at


class Away(MeshError):
    code = Code.UNAVAILABLE
    reason = "AWAY"


class Near(OtherMember):
    """Another member as one of them calls it, while it is there."""

    def __init__(self, group: Group, caller: str, instance: str) -> None:
        self.instance = instance
        self._group = group
        self._caller = caller

    @property
    def _member(self) -> Member:
        if {self.instance, self._caller} & self._group.away:
            raise Away(f"{self.instance} is away")
        return self._group.members[self.instance]

    async def vote(self, ballot: Ballot, *, trial: bool) -> Vote:
        return await self._member.follower.vote(self._caller, ballot, trial=trial)

    async def append(self, heading: Heading, data: bytes) -> Taken:
        if self.instance in self._group.refusing and data:
            raise FrameDamaged(0, "so it says")
        taken = await self._member.follower.take(self._caller, heading, data)
        self._group.members[self._caller].clock.now += self._group.answer_seconds
        return taken

    async def keep_keyring(self, copy: KeyringCopy) -> int:
        return await self._member.follower.keep_keyring(self._caller, copy)

    async def read_keyring(self) -> KeyringCopy:
        return self._member.follower.keyring


class Group:
    """Members, and who of them is away."""

    def __init__(self, folder: Path, stack: ExitStack, count: int) -> None:
        self.names = ("one", "two", "three", "four", "five")[:count]
        self.folder = folder
        self.away: set[str] = set()
        self.refusing: set[str] = set()
        """Who says of frames that they are damaged, whatever they are."""
        self.answer_seconds = 0.0
        """How long an answer to a writer is on its way, by the writer's clock."""
        self._stack = stack
        self._stacks: dict[str, ExitStack] = {}
        self.settings = Replication(tuple(MemberAddress(name, f"{name}:1") for name in self.names))
        self.members = {name: self.start(name) for name in self.names}

    def start(self, name: str) -> Member:
        """Start a member on its folder; what it is asked first finds that no writer was heard for a while."""
        self._stacks[name] = self._stack.enter_context(ExitStack())
        member = self._stacks[name].enter_context(member_at(self.folder / name, name))
        member.wait()
        return member

    def start_anew(self, name: str) -> None:
        """End a member as its process would, and start it on what it left."""
        self._stacks[name].close()
        self.members[name] = self.start(name)

    def forget(self, name: str) -> None:
        """Empty a member's disk, and start it anew on nothing."""
        self._stacks[name].close()
        self.folder.joinpath(name).rename(self.folder / f"{name}-lost")
        self.members[name] = self.start(name)

    def keep_copy(self, name: str) -> None:
        """Keep what a member's disk has now."""
        copytree(self.folder / name, self.folder / f"{name}-copy")

    def put_back(self, name: str) -> None:
        """Put a member's disk back to what was kept of it, and start it anew on that."""
        self._stacks[name].close()
        rmtree(self.folder / name)
        self.folder.joinpath(f"{name}-copy").rename(self.folder / name)
        self.members[name] = self.start(name)

    def others(self, name: str) -> list[OtherMember]:
        return [Near(self, name, other) for other in self.names if other != name]

    def elections(self, name: str, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> Elections:
        member = self.members[name]
        return Elections(self.settings, member.follower, self.others(name), member.clock, pause)

    async def inform(self, name: str) -> None:
        """Let one of them ask the others what they have promised, by its own clock in no time."""
        clock = self.members[name].clock

        async def pause(seconds: float) -> None:
            clock.now += seconds
            await asyncio.sleep(0.001)

        async with asyncio.timeout(20):
            await self.elections(name, pause).until_informed()

    async def campaign(self, name: str) -> Elected | None:
        """Let one of them stand once, everyone having waited long enough, and asked the others where that ends."""
        for each, member in self.members.items():
            if each not in self.away and (member.follower.allegiance.settled or not self.away):
                await self.inform(each)
        for member in self.members.values():
            member.wait()
        return await self.elections(name).campaign()

    def leading(self, name: str, elected: Elected) -> Leading:
        """What the elected one does as the writer, its epoch's first frame being written."""
        member = self.members[name]
        first = begin_epoch(member.store, member.files, elected.epoch)
        return Leading(
            name,
            self.settings,
            elected,
            first,
            follower=member.follower,
            others=self.others(name),
            files=member.files,
            keyring_file=member.keyring_file,
            growth=member.growth,
            clock=member.clock,
        )


@contextmanager
def group_at(folder: Path, count: int = 3) -> Iterator[Group]:
    """A group without a log yet. For a running event loop."""
    with ExitStack() as stack:
        yield Group(folder, stack, count)
