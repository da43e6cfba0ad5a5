"""It is responsible for what this member answers the others: its vote, their frames, their keyring.

Every answer rests on a promise that is durable, and every change of it waits for its turn, so a member never says two
things about one epoch. Raft's rules, with the writer's epoch as the term, except that a frame counts by the leaves that
the log has after it: frames without entries have none, and losing one loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NoReturn

import structlog

from libs.errors import Code, MeshError
from services.ledger.growth import Growth
from services.ledger.replication.cutting import START_ANEW
from services.ledger.replication.exchange import Ballot, Heading, Taken, Vote
from services.ledger.replication.frame_files import FrameName
from services.ledger.replication.keyring_copy import KeyringCopy, KeyringCopyFile
from services.ledger.replication.promise import Promise, PromiseFile
from services.ledger.replication.replica import FrameNotHere, Replica
from services.ledger.replication.turns import Turns
from services.ledger.storage.damage import StoredLogError

MAX_RISE = 1 << 16
"""How many epochs a promise rises at once. Whoever was away for more elections than that gets there in several steps;
and no member, whatever it says, brings the others to where epochs end.
"""

log = structlog.get_logger()


class WriterDeposed(MeshError):
    """Others have another writer, or may have: this one acknowledges nothing more, and starts anew as a follower."""

    code = Code.ABORTED
    reason = "WRITER_DEPOSED"
    exit_status = START_ANEW


class PromiseUnknown(MeshError):
    """This member may have forgotten what it promised: it follows nobody before it has heard enough of the others."""

    code = Code.UNAVAILABLE
    reason = "PROMISE_UNKNOWN"


class EpochTooFar(MeshError):
    """An epoch is further ahead than this member goes at once: where a writer names it, some of the way is done now."""

    reason = "EPOCH_TOO_FAR"


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
        self._own = own
        self._promises = promises
        self._replica = replica
        self._keyring_file = keyring
        self._growth = growth
        self._turns = Turns(thread)
        self._patience = patience_seconds
        self._clock = clock
        kept = promises.load() or Promise(last_epoch)
        # Nobody gets this member's vote for an epoch that its own log has a frame of.
        self._promise = kept if kept.epoch >= last_epoch else replace(kept, epoch=last_epoch, to="")
        self._is_informed = kept.settled
        self._keyring = keyring.load()
        self._ended: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        self.writes = False
        """Whether this member writes, or did: then it starts anew before it takes another writer's frames."""
        self.writer = ""
        """The instance that writes in the promised epoch, as far as this member was told."""
        self.heard_at = clock()
        """When the writer was heard last; at first the start, as there may be one."""
        self.voted_at = self.heard_at
        """When a vote was given last: whoever has it writes as soon as its disk lets it."""

    def hears(self) -> bool:
        """Whether there is a writer, as far as this member knows; itself only while a majority answers it."""
        return self._clock() < self.heard_at + self._patience

    @property
    def epoch(self) -> int:
        return self._promise.epoch

    @property
    def settled(self) -> bool:
        return self._promise.settled

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

    async def until_ended(self) -> NoReturn:
        """Raise what must end this process: `LogDiverged`, or `WriterDeposed` while it writes."""
        await self._ended

    def end(self, error: MeshError) -> None:
        """Have this process end."""
        if not self._ended.done():
            self._ended.set_exception(error)

    async def vote(self, candidate: str, ballot: Ballot, *, trial: bool) -> Vote:
        """Answer a candidate. A vote that is granted, and is no trial, IS durable. Raises `EpochTooFar`."""

        async def answer() -> Vote:
            if ballot.epoch > self.epoch + MAX_RISE:
                raise _too_far(ballot.epoch, self.epoch)
            granted = self._may_write(candidate, ballot)
            if granted and not trial:
                await self._promise_to(ballot.epoch, candidate)
                self.voted_at = self._clock()
            return Vote(granted, self.epoch, self.settled, self._keyring.version)

        return await self._turns.take(answer)

    def ballot(self) -> Ballot:
        """Return what this member would say as a candidate now."""
        return Ballot(self.epoch + 1, self._replica.last_epoch, self.size)

    async def stand(self, ballot: Ballot) -> bool:
        """Vote for oneself; return whether that was still possible. The vote IS durable then."""

        async def answer() -> bool:
            if ballot != self.ballot():
                return False
            await self._promise_to(ballot.epoch, self._own)
            return True

        return await self._turns.take(answer)

    @property
    def is_informed(self) -> bool:
        """Whether no writer is earlier than one that this member has promised itself to and forgotten."""
        return self._is_informed

    def inform(self) -> None:
        """Take in that enough of the others were asked, and `hear_of` was told what they have promised."""
        self._is_informed = True

    async def hear_of(self, epoch: int) -> None:
        """Take in that somebody has promised an epoch: an earlier one is of no use any more.

        One that is far ahead is not reached at once: `epoch` says how far this member is.
        """
        if epoch > self.epoch:
            await self._turns.take(lambda: self._rise_to(epoch))

    async def become_writer(self, epoch: int, keyring: KeyringCopy) -> bool:
        """Write from now on, and let the writer begin with a keyring; return whether the vote for oneself still holds.

        No frame of another writer is taken from then on.
        """

        async def answer() -> bool:
            if (self.epoch, self._promise.to) != (epoch, self._own):
                return False
            self.writes, self.writer, self.heard_at = True, self._own, self._clock()
            await self._turns.in_thread(lambda: self._keyring_file.install(keyring))
            return True

        return await self._turns.take(answer)

    async def settle(self) -> None:
        """Take in that a majority has what this member, its writer, holds: so that is all that it ever answered for."""
        await self._turns.take(self._settle)

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
            if await self._follows(writer, copy.epoch) and copy.version > self._keyring.version:
                await self._store_keyring(copy, forget=True)
            return self.epoch

        return await self._turns.take(answer)

    async def keep_own_keyring(self, copy: KeyringCopy) -> None:
        """Keep the copy that this member gives the others as their writer. It IS durable then."""
        await self._turns.take(lambda: self._store_keyring(copy, forget=False))

    async def _take(self, writer: str, heading: Heading, data: bytes) -> Taken:
        if not await self._follows(writer, heading.epoch):
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
            self.end(error)
            raise
        finally:
            # Taking in much takes long, and the writer is there all the while.
            self.heard_at = self._clock()
        await self._learn(held, heading)
        return Taken(self.epoch, held)

    async def _rise_to(self, epoch: int) -> None:
        if epoch > self.epoch:
            await self._promise_to(min(epoch, self.epoch + MAX_RISE), "")

    async def _store_keyring(self, copy: KeyringCopy, *, forget: bool) -> None:
        def store() -> None:
            self._keyring_file.store(copy)
            if forget:
                self._keyring_file.forget_writers_own()

        await self._turns.in_thread(store)
        self._keyring = copy

    def _may_write(self, candidate: str, ballot: Ballot) -> bool:
        # A writer ends before it votes: what it holds, and counts itself, must be what the candidate is measured by.
        if self.writes or self.hears():
            return False
        if ballot.epoch < self.epoch or (ballot.epoch == self.epoch and self._promise.to not in ("", candidate)):
            return False
        return (ballot.last_epoch, ballot.size) >= (self._replica.last_epoch, self.size)

    async def _follows(self, writer: str, epoch: int) -> bool:
        """Whether a writer is the one of its epoch, and no later epoch is promised. A new epoch is promised to it.

        In the promised epoch itself the writer may be another than this member voted for. Raises `PromiseUnknown` or
        `EpochTooFar`.
        """
        if not self._is_informed:
            raise PromiseUnknown("this member asks the others first what they have promised")
        if epoch < self.epoch or (epoch == self.epoch and self.writer not in ("", writer)):
            return False
        if epoch > self.epoch + MAX_RISE:
            refusal = _too_far(epoch, self.epoch)
            await self._rise_to(epoch)
            raise refusal
        if epoch > self.epoch or not self._promise.to:
            await self._promise_to(epoch, writer)
        if self.writes:
            return False
        if self.writer != writer:
            log.info("following", writer=writer, epoch=epoch, size=self.size)
        self.writer, self.heard_at = writer, self._clock()
        return True

    async def _learn(self, held: FrameName, heading: Heading) -> None:
        """Take in how much a majority holds, as far as this member has it too."""
        committed = min(held.size, heading.committed)
        if committed > self._growth.size:
            root = await self._turns.in_thread(lambda: self._replica.root(committed))
            self._growth.reach(committed, root)
        if heading.begun and held.size >= heading.committed:
            await self._settle()

    async def _settle(self) -> None:
        if not self.settled:
            await self._store_promise(replace(self._promise, settled=True))

    async def _promise_to(self, epoch: int, instance: str) -> None:
        if epoch > self.epoch:
            if self.writes:
                self.end(WriterDeposed(f"{instance} is to write in epoch {epoch}"))
            self.writer = ""
        await self._store_promise(replace(self._promise, epoch=epoch, to=instance))

    async def _store_promise(self, promise: Promise) -> None:
        await self._turns.in_thread(lambda: self._promises.store(promise))
        self._promise = promise


def _too_far(epoch: int, own: int) -> EpochTooFar:
    return EpochTooFar(f"epoch {epoch} is more than {MAX_RISE} above {own}, which this member is at")
