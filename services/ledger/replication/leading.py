"""It is responsible for the writer's part among the members: every frame to each of them, until a majority holds it.

A member that lags or is away holds up nobody. Where no majority answers nothing counts, and after a while this writer
gives up: by then the others may have another, and whoever follows this one would wait in vain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.ledger.growth import Growth
from services.ledger.replication.allegiance import WriterDeposed
from services.ledger.replication.exchange import Heading
from services.ledger.replication.follower import Follower
from services.ledger.replication.frame_files import FrameEnd, FrameFiles
from services.ledger.replication.keyring_copy import KeyringCopy, KeyringCopyFile
from services.ledger.replication.majority import Majority
from services.ledger.replication.others import OtherMember
from services.ledger.replication.settings import Replication
from services.ledger.replication.supplying import Supply
from services.ledger.replication.tenure import Tenure
from services.ledger.storage.breaking import ending_when_broken
from services.ledger.storage.store import LogStore


@dataclass(frozen=True, slots=True)
class Elected:
    """What a majority gave this member: an epoch, and the newest keyring that one of them knew."""

    epoch: int
    keyring: KeyringCopy


@dataclass(frozen=True, slots=True)
class Known:
    """Another member, as the writer knows it."""

    instance: str
    held: int
    """How many of the writer's leaves it holds."""
    answers: bool
    """Whether it answered lately."""


class Leading:
    """One epoch's writer towards the others. What waits here waits for a majority."""

    def __init__(
        self,
        own: str,
        settings: Replication,
        elected: Elected,
        first: FrameEnd,
        *,
        follower: Follower,
        others: Sequence[OtherMember],
        files: FrameFiles,
        keyring_file: KeyringCopyFile,
        growth: Growth,
        clock: Callable[[], float],
    ) -> None:
        """`first` is the end of the epoch's first frame, which IS durable here."""
        self._own = own
        self._settings = settings
        self._epoch = elected.epoch
        self._follower = follower
        self._others = others
        self._files = files
        self._keyring_file = keyring_file
        self._growth = growth
        self.majority = Majority([each.instance for each in settings.members])
        self.majority.begin(first)
        self._end = first
        self._first = first
        self._keyring = KeyringCopy(elected.epoch, elected.keyring.generation, elected.keyring.content)
        self._begun = False
        self._wakes = {other.instance: asyncio.Event() for other in others}
        self.tenure = Tenure(self._wakes, settings.majority, settings.election_seconds, clock)

    async def run(self) -> None:
        """Give everyone what they lack, for ever. Ends the process through its follower when it is no writer more.

        Raises `LogDamaged`.
        """
        async with asyncio.TaskGroup() as tasks:
            for other in self._others:
                supply = Supply(self, other, self._end)
                wake = self._wakes[other.instance]
                tasks.create_task(supply.keep(wake, self._settings.heartbeat_seconds))
            tasks.create_task(self._keep_majority())

    async def until_begun(self) -> None:
        """Wait until a majority has this epoch's first frame and, with it, everything before; and the keyring.

        All of that counts then.
        """
        await self._share(self._keyring)
        await self.held()
        tip = await asyncio.to_thread(self._files.tip, self._first)
        self._growth.reach(self._first.name.size, tip.root)
        self._growth.is_all = self.is_heard
        self._begun = True
        await self._follower.settle()

    async def held(self) -> None:
        """Return once a majority holds what is written so far. The caller MUST not write meanwhile."""
        self._end = self._files.last()
        self.majority.holds(self._own, self._end)
        self._wake()
        await self.majority.until_held(self._end)

    async def share(self, generation: int) -> None:
        """Return once a majority has the keyring that this writer stored last."""
        content = await asyncio.to_thread(self._keyring_file.writers_own)
        await self._share(KeyringCopy(self._epoch, generation, content))

    async def forgotten(self) -> None:
        """Return once every member's copy is the keyring that was shared last. One that is away is waited for."""
        await self.majority.until_kept_by_all(self._keyring)

    def known(self) -> list[Known]:
        """Return what is known of each of the others."""
        names = [other.instance for other in self._others]
        return [Known(name, self.majority.held_by(name), self.tenure.answers(name)) for name in names]

    def is_heard(self) -> bool:
        """Whether nobody else can be the writer yet. This member itself gives no vote while it writes."""
        return self.tenure.left > 0

    def require_writer(self) -> None:
        """Raise `WriterDeposed`, which ends this process too, where somebody else may be the writer."""
        if not self.is_heard():
            deposed = _unanswered()
            self._follower.allegiance.end(deposed)
            raise deposed

    async def _share(self, copy: KeyringCopy) -> None:
        await self._follower.keep_own_keyring(copy)
        self.majority.has_keyring(self._own, copy.version)
        self._keyring = copy
        self._wake()
        await self.majority.until_kept(copy)

    def _wake(self) -> None:
        for wake in self._wakes.values():
            wake.set()

    def heard(self, instance: str, epoch: int, asked_at: float) -> None:
        """Take in an answer. One from a later epoch ends this writer, and raises `WriterDeposed`."""
        if epoch > self._epoch:
            deposed = WriterDeposed(f"{instance} has promised itself to epoch {epoch}")
            self._follower.allegiance.end(deposed)
            raise deposed
        self.tenure.answered(instance, asked_at)
        self._follower.allegiance.heard_at = self.tenure.heard_at

    def heading(self, after: FrameEnd) -> Heading:
        """Return what goes before frames that follow one."""
        return Heading(self._epoch, after.name, self._growth.size, self._begun)

    @property
    def end(self) -> FrameEnd:
        return self._end

    @property
    def files(self) -> FrameFiles:
        return self._files

    @property
    def keyring(self) -> KeyringCopy:
        return self._keyring

    async def _keep_majority(self) -> None:
        while True:
            left = self.tenure.left
            if left <= 0:
                self._follower.allegiance.end(_unanswered())
                return
            await asyncio.sleep(left)


def _unanswered() -> WriterDeposed:
    return WriterDeposed("no majority of the members answers")


def begin_epoch(store: LogStore, files: FrameFiles, epoch: int) -> FrameEnd:
    """Write the epoch's first frame: without entries, and with the position that the stream was read to."""
    head = store.head
    data, _, after = head.build(
        (),
        epoch=epoch,
        source=head.source,
        source_low=head.source_high + 1,
        source_high=head.source_high,
        wall_ns=time.time_ns(),
    )
    with ending_when_broken():
        store.append(data, after)
    return files.last()
