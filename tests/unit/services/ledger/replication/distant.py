"""Another member of a simulated log, as one of them reaches it: over the world's network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from libs.errors import Code, MeshError
from services.ledger.replication.exchange import Ballot, Heading, Taken, Vote
from services.ledger.replication.follower import Follower
from services.ledger.replication.keyring_copy import KeyringCopy
from services.ledger.replication.others import OtherMember

if TYPE_CHECKING:
    from .simulated import Life
    from .world import World

T = TypeVar("T")


class Away(MeshError):
    """It does not answer."""

    code = Code.UNAVAILABLE
    reason = "AWAY"


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
