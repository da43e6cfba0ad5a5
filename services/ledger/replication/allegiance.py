"""It is responsible for whom this member stands by: which epoch it has promised to whom, and when it heard the writer.

Raft's rules, with the writer's epoch as the term. Every promise is durable before anybody is told of it. Whoever calls
what may change one MUST have the turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

import structlog

from libs.errors import Code, MeshError
from services.ledger.replication.cutting import START_ANEW
from services.ledger.replication.promise import NOTHING, Extent, Promise, PromiseFile
from services.ledger.replication.turns import Turns

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
    """This member may have forgotten what it promised: it follows nobody, and votes for none, before it has heard
    enough of the others.
    """

    code = Code.UNAVAILABLE
    reason = "PROMISE_UNKNOWN"


class EpochTooFar(MeshError):
    """An epoch is further ahead than this member goes at once: where a writer names it, some of the way is done now."""

    reason = "EPOCH_TOO_FAR"


class Allegiance:
    """One member's, also while it writes: then it follows nobody."""

    def __init__(
        self,
        own: str,
        promises: PromiseFile,
        turns: Turns,
        *,
        last_epoch: int,
        patience_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        """`last_epoch` is the latest that the log knows of.

        A writer that was heard within `patience_seconds` keeps this member's allegiance. Raises `LogDamaged`.
        """
        self._own = own
        self._promises = promises
        self._turns = turns
        self._patience = patience_seconds
        self._clock = clock
        kept = promises.load() or Promise(last_epoch)
        # Nobody gets this member's vote for an epoch that its own log has a frame of.
        self._promise = kept if kept.epoch >= last_epoch else replace(kept, epoch=last_epoch, to="")
        self._is_informed = False
        self._spent = self._promise.epoch
        """No vote is given up to this epoch but one that was given: the disk may be older than another one."""
        self._ended: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        self.writes = False
        """Whether this member writes, or did: then it starts anew before it takes another writer's frames."""
        self.writer = ""
        """The instance that writes in the promised epoch, as far as this member was told."""
        self.heard_at = clock()
        """When the writer was heard last; at first the start, as there may be one."""
        self.voted_at = self.heard_at
        """When a vote was given last: whoever has it writes as soon as its disk lets it."""

    @property
    def epoch(self) -> int:
        return self._promise.epoch

    @property
    def settled(self) -> bool:
        """Whether this member knows how far the log goes, at most, that it ever answered for."""
        return self._promise.settled

    def is_settled_with(self, log: Extent) -> bool:
        """Whether a log that goes so far has all that this member ever answered for."""
        return self.settled and log >= self._promise.forgotten

    def hears(self) -> bool:
        """Whether there is a writer, as far as this member knows; itself only while a majority answers it."""
        return self._clock() < self.heard_at + self._patience

    def hear(self) -> None:
        """Take in that the writer is there."""
        self.heard_at = self._clock()

    async def until_ended(self) -> NoReturn:
        """Raise what must end this process: `LogDiverged`, or `WriterDeposed` while it writes."""
        await self._ended

    def end(self, error: MeshError) -> None:
        """Have this process end."""
        if not self._ended.done():
            self._ended.set_exception(error)

    @property
    def is_informed(self) -> bool:
        """Whether no writer is earlier than one that this member has promised itself to and forgotten."""
        return self._is_informed

    def inform(self) -> None:
        """Take in that enough of the others were asked, and `rise_to` and `recall` were told what they have."""
        self._is_informed, self._spent = True, self.epoch

    async def recall(self, extent: Extent) -> None:
        """Take in that this member may have answered for a log that goes so far, and does not know of it."""
        if extent > self._promise.forgotten:
            await self._store(replace(self._promise, forgotten=extent))

    def is_free_for(self, candidate: str, epoch: int) -> bool:
        """Whether a candidate can have this member's vote in an epoch. Raises `EpochTooFar`."""
        if epoch > self.epoch + MAX_RISE:
            raise self._too_far(epoch)
        # A writer ends before it votes: what it holds, and counts itself, must be what the candidate is measured by.
        if self.writes or self.hears() or not self._is_informed:
            return False
        if epoch == self.epoch:
            return self._promise.to == candidate or (not self._promise.to and epoch > self._spent)
        return epoch > self.epoch

    async def vote_for(self, candidate: str, epoch: int) -> None:
        """Give a vote. It IS durable then."""
        await self._promise_to(epoch, candidate)
        self.voted_at = self._clock()

    async def stand(self, epoch: int) -> None:
        """Vote for oneself. The vote IS durable then."""
        await self._promise_to(epoch, self._own)

    def begin(self, epoch: int) -> bool:
        """Write from now on, if the vote for oneself still holds; return whether it does."""
        if (self.epoch, self._promise.to) != (epoch, self._own):
            return False
        self.writes, self.writer, self.heard_at = True, self._own, self._clock()
        return True

    async def rise_to(self, epoch: int) -> None:
        """Take in that an epoch was promised, or come nearer to it: an earlier one is of no use any more."""
        if epoch > self.epoch:
            await self._promise_to(min(epoch, self.epoch + MAX_RISE), "")

    async def follows(self, writer: str, epoch: int) -> bool:
        """Whether a writer is the one of its epoch, and no later epoch is promised. A new epoch is promised to it.

        In the promised epoch itself the writer may be another than this member voted for. Raises `PromiseUnknown` or
        `EpochTooFar`.
        """
        if not self._is_informed:
            raise PromiseUnknown("this member asks the others first what they have promised")
        if epoch < self.epoch or (epoch == self.epoch and self.writer not in ("", writer)):
            return False
        if epoch > self.epoch + MAX_RISE:
            refusal = self._too_far(epoch)
            await self.rise_to(epoch)
            raise refusal
        if epoch > self.epoch or not self._promise.to:
            await self._promise_to(epoch, writer)
        if self.writes:
            return False
        if self.writer != writer:
            log.info("following", writer=writer, epoch=epoch)
        self.writer, self.heard_at = writer, self._clock()
        return True

    async def settle(self) -> None:
        """Take in that this member holds all that it ever answered for."""
        if not self.settled or self._promise.forgotten != NOTHING:
            await self._store(replace(self._promise, settled=True, forgotten=NOTHING))

    async def _promise_to(self, epoch: int, instance: str) -> None:
        if epoch > self.epoch:
            if self.writes:
                self.end(WriterDeposed(f"{instance} is to write in epoch {epoch}"))
            self.writer = ""
        await self._store(replace(self._promise, epoch=epoch, to=instance))

    async def _store(self, promise: Promise) -> None:
        await self._turns.in_thread(lambda: self._promises.store(promise))
        self._promise = promise

    def _too_far(self, epoch: int) -> EpochTooFar:
        return EpochTooFar(f"epoch {epoch} is more than {MAX_RISE} above {self.epoch}, which this member is at")
