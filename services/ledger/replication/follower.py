"""It is responsible for what this member answers the others: its vote, their frames, their keyring.

Every answer rests on a promise that is durable, and every change of it waits for its turn, so a member never says two
things about one epoch. A frame counts by the leaves that the log has after it: frames without entries have none, and
losing one loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from services.ledger.growth import Growth
from services.ledger.replication.allegiance import Allegiance
from services.ledger.replication.exchange import Ballot, Heading, Taken, Vote
from services.ledger.replication.frame_files import FrameName
from services.ledger.replication.keyring_copy import KeyringCopy, KeyringCopyFile
from services.ledger.replication.promise import Extent, PromiseFile
from services.ledger.replication.replica import FrameNotHere, Replica
from services.ledger.replication.turns import Turns
from services.ledger.storage.damage import StoredLogError

log = structlog.get_logger()


class Follower:
    """This member towards the others, also while it writes: then it follows nobody."""

    def __init__(
        self,
        own: str,
        promises: PromiseFile,
        replica: Replica,
        keyring: KeyringCopyFile,
        growth: Growth,
        thread: ThreadPoolExecutor,
        *,
        last_epoch: int,
        patience_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """`last_epoch` is the latest that the log knows of; `thread` the one that writes the log.

        A writer that was heard within `patience_seconds` keeps this member's allegiance. Raises `LogDamaged`.
        """
        self._replica = replica
        self._keyring_file = keyring
        self._growth = growth
        self._turns = Turns(thread)
        self.allegiance = Allegiance(
            own, promises, self._turns, last_epoch=last_epoch, patience_seconds=patience_seconds, clock=clock
        )
        self._keyring = keyring.load()

    @property
    def epoch(self) -> int:
        return self.allegiance.epoch

    @property
    def settled(self) -> bool:
        """Whether this member holds all that it ever answered for."""
        return self.allegiance.is_settled_with(self.extent)

    @property
    def extent(self) -> Extent:
        """How far the log on this disk goes."""
        return Extent(self._replica.last_epoch, self.size)

    @property
    def size(self) -> int:
        return self._replica.size

    @property
    def committed(self) -> int:
        """How many leaves this member knows a majority to hold."""
        return self._growth.size

    @property
    def keyring(self) -> KeyringCopy:
        return self._keyring

    async def vote(self, candidate: str, ballot: Ballot, *, trial: bool) -> Vote:
        """Answer a candidate. A vote that is granted, and is no trial, IS durable. Raises `EpochTooFar`."""

        async def answer() -> Vote:
            is_free = self.allegiance.is_free_for(candidate, ballot.epoch)
            granted = is_free and ballot.extent >= self.extent
            if granted and not trial:
                await self.allegiance.vote_for(candidate, ballot.epoch)
            settled = self.allegiance.is_settled_with(ballot.extent)
            return Vote(granted, self.epoch, settled, self._keyring.version, self.extent)

        return await self._turns.take(answer)

    def ballot(self) -> Ballot:
        """Return what this member would say as a candidate now."""
        return Ballot(self.epoch + 1, self._replica.last_epoch, self.size)

    async def stand(self, ballot: Ballot) -> bool:
        """Vote for oneself; return whether that was still possible. The vote IS durable then."""

        async def answer() -> bool:
            if ballot != self.ballot():
                return False
            await self.allegiance.stand(ballot.epoch)
            return True

        return await self._turns.take(answer)

    async def hear_of(self, epoch: int) -> None:
        """Take in that somebody has promised an epoch: an earlier one is of no use any more.

        One that is far ahead is not reached at once: `epoch` says how far this member is.
        """
        if epoch > self.epoch:
            await self._turns.take(lambda: self.allegiance.rise_to(epoch))

    async def recall(self, extent: Extent) -> None:
        """Take in how far another's log goes: no further goes what this member answered it for, whatever its disk says.

        It IS durable then.
        """

        async def answer() -> None:
            if extent > self.extent:
                await self.allegiance.recall(extent)

        await self._turns.take(answer)

    async def recall_keyring(self, copy: KeyringCopy) -> None:
        """Keep another's copy of the keyring where it is newer: it may have been here. It IS durable then."""

        async def answer() -> None:
            if copy.version > self._keyring.version:
                await self._store_keyring(copy, forget=True)

        await self._turns.take(answer)

    async def become_writer(self, epoch: int, keyring: KeyringCopy) -> bool:
        """Write from now on, and let the writer begin with a keyring; return whether the vote for oneself still holds.

        No frame of another writer is taken from then on.
        """

        async def answer() -> bool:
            if not self.allegiance.begin(epoch):
                return False
            await self._turns.in_thread(lambda: self._keyring_file.install(keyring))
            return True

        return await self._turns.take(answer)

    async def settle(self) -> None:
        """Take in that a majority has what this member, its writer, holds: so that is all that it ever answered for."""
        await self._turns.take(self.allegiance.settle)

    async def take(self, writer: str, heading: Heading, data: bytes) -> Taken:
        """Add a writer's frames. What the answer says to be held IS durable.

        Raises `PromiseUnknown`, `EpochTooFar`, `FrameDamaged`, `AppendMalformed`, or `LogDiverged`, which also ends
        this process.
        """
        return await self._turns.take(lambda: self._take(writer, heading, data))

    async def keep_keyring(self, writer: str, copy: KeyringCopy) -> int:
        """Replace the copy of the keyring, durably; return the promised epoch: above the writer's, nothing was kept.

        Raises `PromiseUnknown` or `EpochTooFar`.
        """

        async def answer() -> int:
            if await self.allegiance.follows(writer, copy.epoch) and copy.version > self._keyring.version:
                await self._store_keyring(copy, forget=True)
            return self.epoch

        return await self._turns.take(answer)

    async def keep_own_keyring(self, copy: KeyringCopy) -> None:
        """Keep the copy that this member gives the others as their writer. It IS durable then."""
        await self._turns.take(lambda: self._store_keyring(copy, forget=False))

    async def _take(self, writer: str, heading: Heading, data: bytes) -> Taken:
        if not await self.allegiance.follows(writer, heading.epoch):
            return Taken(self.epoch)
        promised = self._growth.size
        try:
            held = await self._turns.in_thread(
                lambda: self._replica.take(heading.previous, data, epoch=heading.epoch, promised=promised)
            )
        except FrameNotHere as error:
            return Taken(self.epoch, recent=tuple(error.recent))
        except StoredLogError as error:
            log.error("the writer's frames cannot be taken in", writer=writer, reason=error.reason, detail=str(error))
            self.allegiance.end(error)
            raise
        finally:
            # Taking in much takes long, and the writer is there all the while.
            self.allegiance.hear()
        await self._learn(held, heading)
        return Taken(self.epoch, held)

    async def _store_keyring(self, copy: KeyringCopy, *, forget: bool) -> None:
        def store() -> None:
            self._keyring_file.store(copy)
            if forget:
                self._keyring_file.forget_writers_own()

        await self._turns.in_thread(store)
        self._keyring = copy

    async def _learn(self, held: FrameName, heading: Heading) -> None:
        """Take in how much a majority holds, as far as this member has it too."""
        committed = min(held.size, heading.committed)
        if committed > self._growth.size:
            root = await self._turns.in_thread(lambda: self._replica.root(committed))
            self._growth.reach(committed, root)
        if heading.begun and held.size >= heading.committed:
            await self.allegiance.settle()
