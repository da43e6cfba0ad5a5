"""It is responsible for a writer whom the others hear well and who reaches too little to write: it lets them try.

As long as it is heard nobody else stands. It gives up only what others say that they can do: an outage that everyone
has deposes nobody, and what is not known of another counts as not reached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn, Protocol

import structlog

from libs.errors import Code, MeshError
from services.ledger.replication.cutting import START_ANEW
from services.ledger.replication.exchange import Reached
from services.ledger.replication.others import OtherMember
from services.ledger.replication.settings import Replication

_LOOKS = 4

log = structlog.get_logger()


class WriterCutOff(MeshError):
    """Another member reaches what this writer has not reached for a while: it starts anew as a follower."""

    code = Code.ABORTED
    reason = "WRITER_CUT_OFF"
    exit_status = START_ANEW


class Around(Protocol):
    """What is around this member."""

    async def look(self) -> Reached: ...


class SteppingDown:
    """One writer, as it looks around."""

    def __init__(
        self,
        settings: Replication,
        around: Around,
        others: Sequence[OtherMember],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self._around = around
        self._others = others
        self._pause = pause
        self.has_begun = False
        """Whether it writes. Before that it needs the witnesses too."""

    async def keep(self) -> NoReturn:
        """Look around every `election_seconds`, for ever.

        Raises `WriterCutOff` where others had, at four looks in a row, what this writer had not.
        """
        in_vain = 0
        while in_vain < _LOOKS:
            await self._pause(self._settings.election_seconds)
            own = await self._around.look()
            in_vain = in_vain + 1 if not self._suffices(own) and await self._others_can(own) else 0
        raise WriterCutOff(f"others reach what this writer does not: it is {own}")

    def _suffices(self, own: Reached) -> bool:
        return own.kms and own.broker and (own.witnesses or self.has_begun)

    async def _others_can(self, own: Reached) -> bool:
        able = sum(await asyncio.gather(*(self._can(other) for other in self._others)))
        log.warning("this writer does not reach what it needs", own=str(own), others_that_do=able)
        # Without the KMS it would have no certificate to come back with: so many are needed that go on without it.
        return able >= (1 if own.kms else self._settings.majority)

    async def _can(self, other: OtherMember) -> bool:
        try:
            return (await other.reached()).all
        except MeshError:
            return False
