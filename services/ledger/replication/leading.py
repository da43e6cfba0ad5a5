"""It is responsible for the writer's part among the members: every frame to each of them, until a majority holds it.

A member that lags or is away holds up nobody. Where no majority answers nothing counts, and after a while this writer
gives up: by then the others may have another, and whoever follows this one would wait in vain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from libs.errors import MeshError
from services.ledger.growth import Growth
from services.ledger.replication.allegiance import WriterDeposed
from services.ledger.replication.exchange import Heading, Taken
from services.ledger.replication.follower import Follower
from services.ledger.replication.frame_files import FrameEnd, FrameFiles
from services.ledger.replication.keyring_copy import KeyringCopy, KeyringCopyFile
from services.ledger.replication.majority import Majority
from services.ledger.replication.others import PIECE_BYTES, OtherMember
from services.ledger.replication.settings import Replication
from services.ledger.replication.tenure import Tenure
from services.ledger.storage.breaking import ending_when_broken
from services.ledger.storage.damage import StoredLogError
from services.ledger.storage.frames import FrameDamaged
from services.ledger.storage.store import LogStore

log = structlog.get_logger()


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
                tasks.create_task(self._supply(other))
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

    async def _share(self, copy: KeyringCopy) -> None:
        await self._follower.keep_own_keyring(copy)
        self.majority.has_keyring(self._own, copy.version)
        self._keyring = copy
        self._wake()
        await self.majority.until_kept(copy)

    def _wake(self) -> None:
        for wake in self._wakes.values():
            wake.set()

    async def _supply(self, other: OtherMember) -> None:
        supply = _Supply(self, other, self._end)
        wake, trouble = self._wakes[other.instance], ""
        while True:
            wake.clear()
            try:
                more = await supply.give()
                trouble = ""
            except StoredLogError:
                # Of this log, not the other member's: what cannot be read can be given to nobody.
                raise
            except MeshError as error:
                more = False
                if error.reason != trouble:
                    log.warning("a member does not follow", member=other.instance, reason=error.reason, why=str(error))
                trouble = error.reason
            if not more:
                await self._until_due(None if trouble else wake)

    async def _until_due(self, wake: asyncio.Event | None) -> None:
        """Wait for the next heartbeat, or for something to send to a member that answers."""
        try:
            async with asyncio.timeout(self._settings.heartbeat_seconds):
                await (wake or asyncio.Event()).wait()
        except TimeoutError:
            return

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
                self._follower.allegiance.end(WriterDeposed("no majority of the members answers"))
                return
            await asyncio.sleep(left)


class _Supply:
    """What one member has been given."""

    def __init__(self, leading: Leading, other: OtherMember, start: FrameEnd) -> None:
        self._leading = leading
        self._other = other
        self._at = start
        """The last frame that the member is believed to have."""
        self._keyring: KeyringCopy | None = None

    async def give(self) -> bool:
        """Give the next of what the member lacks, or a heartbeat; return whether it lacks more.

        Raises `MeshError`; `LogDamaged` where it is this log's frames that are not whole.
        """
        leading, other = self._leading, self._other
        if (keyring := leading.keyring) is not self._keyring:
            asked_at = leading.tenure.now()
            leading.heard(other.instance, await other.keep_keyring(keyring), asked_at)
            leading.majority.has_keyring(other.instance, keyring.version)
            self._keyring = keyring
        data, end = await asyncio.to_thread(leading.files.read, self._at, leading.end, PIECE_BYTES)
        asked_at = leading.tenure.now()
        try:
            taken = await other.append(leading.heading(self._at), data)
        except MeshError as error:
            if error.reason == FrameDamaged.reason:
                # Bodies are given as they are on this disk, unread. What is damaged here is refused for ever.
                await asyncio.to_thread(leading.files.require_whole, self._at, end)
            raise
        leading.heard(other.instance, taken.epoch, asked_at)
        if taken.held == end.name:
            self._at = end
            leading.majority.holds(other.instance, end)
            return end.name != leading.end.name
        return await self._meet(taken)

    async def _meet(self, taken: Taken) -> bool:
        """Go back to the last frame that both have."""
        for name in taken.recent:
            common = await asyncio.to_thread(self._leading.files.find, name, self._leading.end)
            if common is not None:
                self._at = common
                self._leading.majority.holds(self._other.instance, common)
                # A log that was emptied has no keyring either.
                self._keyring = None
                return True
        if taken.recent:
            log.error("a member's log has nothing in common with this one", member=self._other.instance)
        return False


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
