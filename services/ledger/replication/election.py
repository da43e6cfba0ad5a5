"""It is responsible for seeking a writer when there is none: whoever a majority promises an epoch to.

A trial comes first, in which nobody promises anything: a member that was away does not depose a writer whom the others
hear well. A vote counts towards the majority when the member that gives it is settled; where some are not, as at the
first start of all or after a disk was lost, all members must agree, so that the longest log wins for certain.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from libs.errors import MeshError
from services.ledger.replication.exchange import Ballot, Vote
from services.ledger.replication.follower import Follower
from services.ledger.replication.keyring_copy import KeyringCopy
from services.ledger.replication.leading import Elected
from services.ledger.replication.others import OtherMember
from services.ledger.replication.settings import Replication

_ROUNDS = 2
"""As many calls that last as long as calls may are waited for, of a member that does not answer."""

_MOST_LEAVES = 1 << 48
"""No log has so many, and JSON holds the number."""

log = structlog.get_logger()


class Elections:
    """Stands for election whenever no writer is heard."""

    def __init__(
        self,
        settings: Replication,
        follower: Follower,
        others: Sequence[OtherMember],
        clock: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._follower = follower
        self.others = others
        self._clock = clock
        self._pause = pause
        self._tried_at = clock()
        self._asking = asyncio.Lock()

    async def until_elected(self) -> Elected:
        """Return once this member is to write: it takes no other writer's frames any more."""
        await self.until_informed()
        while True:
            await self._until_silence()
            elected = await self.campaign()
            if elected is not None:
                return elected
            self._tried_at = self._clock()

    async def until_informed(self) -> None:
        """Learn what the others have promised and hold: the disk here may be emptied, or put back to what it was.

        What ever counted by this member's word, a vote, a frame or a keyring, somebody else had before it was given:
        who asked for it. So all the others are asked, and who does not answer is waited for longer than a vote is. Then
        so many suffice that each majority has one of them; of three members, both. A member that knows of no reason to
        doubt its disk goes on with as many as elect a writer: or nobody could be restarted while another is away.
        """
        allegiance, settings = self._follower.allegiance, self._settings
        async with self._asking:
            until = self._clock() + _ROUNDS * settings.election_seconds
            heard: set[str] = set()
            while not allegiance.is_informed:
                asked = await asyncio.gather(*(self._learn_from(other) for other in self.others))
                heard |= {other.instance for other, told in zip(self.others, asked, strict=True) if told}
                least = settings.majority - 1 if allegiance.settled else settings.majority
                if len(heard) == len(self.others):
                    allegiance.inform()
                elif self._clock() >= until and len(heard) >= least:
                    if len(heard) < settings.majority:
                        log.warning(
                            "too few answer: what this member told the others is taken from its disk", heard=[*heard]
                        )
                    allegiance.inform()
                else:
                    await self._pause(settings.heartbeat_seconds)

    async def _learn_from(self, other: OtherMember) -> bool:
        """Take in what another knows; return whether that was all it knows."""
        _, vote = await self._ask(other, self._follower.ballot(), trial=True)
        if vote is None or vote.extent.last_epoch > vote.epoch or vote.extent.size > _MOST_LEAVES:
            return False  # No log goes so far. Taken in, it would keep this member's vote from counting.
        if vote.keyring > self._follower.keyring.version:
            try:
                await self._follower.recall_keyring(await other.read_keyring())
            except MeshError as error:
                log.info("no keyring", member=other.instance, reason=error.reason)
                return False
        await self._follower.recall(vote.extent)
        return True

    async def _until_silence(self) -> None:
        """Wait until no writer was heard, and none voted for, for a while, another while each time: or all would stand
        at once.
        """
        patience = self._settings.election_seconds * random.uniform(1, 2)  # noqa: S311 - a delay, not a secret
        allegiance = self._follower.allegiance
        while True:
            left = max(allegiance.heard_at, allegiance.voted_at, self._tried_at) + patience - self._clock()
            if left <= 0:
                return
            await self._pause(left)

    async def campaign(self) -> Elected | None:
        """Stand once; return None where that led to nothing."""
        ballot = self._follower.ballot()
        if await self._votes(ballot, trial=True) is None or not await self._follower.stand(ballot):
            return None
        votes = await self._votes(ballot, trial=False)
        if votes is None:
            return None
        try:
            keyring = await self._newest_keyring(votes)
        except MeshError as error:
            log.warning("the newest keyring cannot be had", reason=error.reason, detail=str(error))
            return None
        if not await self._follower.become_writer(ballot.epoch, keyring):
            return None
        log.info("elected", epoch=ballot.epoch, votes=sorted(votes), size=self._follower.size)
        return Elected(ballot.epoch, keyring)

    async def _votes(self, ballot: Ballot, *, trial: bool) -> Mapping[str, Vote] | None:
        """Return the others' granted votes as soon as they suffice, or None where they do not."""
        granted: dict[str, Vote] = {}
        asking = [asyncio.create_task(self._ask(other, ballot, trial=trial)) for other in self.others]
        try:
            for answered in asyncio.as_completed(asking):
                instance, vote = await answered
                if vote is not None and vote.granted:
                    granted[instance] = vote
                if self._suffices(granted):
                    return granted
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return None

    async def _ask(self, other: OtherMember, ballot: Ballot, *, trial: bool) -> tuple[str, Vote | None]:
        try:
            vote = await other.vote(ballot, trial=trial)
        except MeshError as error:
            log.info("no vote", member=other.instance, reason=error.reason)
            return other.instance, None
        await self._follower.hear_of(vote.epoch)
        # Of what is too far ahead to be taken in at once it has not been informed.
        return other.instance, vote if vote.epoch <= self._follower.epoch else None

    def _suffices(self, granted: Mapping[str, Vote]) -> bool:
        settled = sum(vote.settled for vote in granted.values()) + self._follower.settled
        return settled >= self._settings.majority or len(granted) == len(self.others)

    async def _newest_keyring(self, votes: Mapping[str, Vote]) -> KeyringCopy:
        """Return the newest keyring that these members know. One that counted is known to a majority, so to one of
        them, and none of them takes another from an earlier writer any more.
        """
        newest = self._follower.keyring
        for other in self.others:
            vote = votes.get(other.instance)
            if vote is not None and vote.keyring > newest.version:
                newest = await other.read_keyring()
        return newest
