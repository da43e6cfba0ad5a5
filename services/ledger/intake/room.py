"""It is responsible for room in the stream: what is safe in the log is removed there before it keeps publishers out.

Safe is what a signed tree covers and, where the log has witnesses, a witnessed one: so enough members hold it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

import structlog

from libs.events.cancellation import heeding_cancellation
from libs.events.connect import BrokerUnavailable, NatsLink
from libs.events.consume import make_room
from services.ledger.intake.committing import Taken

_LOOK_SECONDS = 1.0
_CALL_SECONDS = 5.0

log = structlog.get_logger()


class TakenIn(Protocol):
    """Who takes in the stream."""

    @property
    def taken(self) -> Taken | None: ...


class Room:
    """Room in one log's stream, for its writer."""

    def __init__(
        self, link: NatsLink, log_number: int, intake: TakenIn, covering: Callable[[int], Awaitable[object]]
    ) -> None:
        """`covering` waits for a tree of at least so many leaves that is signed and, if there are any, witnessed."""
        self._link = link
        self._log_number = log_number
        self._intake = intake
        self._covering = covering

    async def keep(self) -> NoReturn:
        """Make room whenever more than half of it is taken, for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                with heeding_cancellation():
                    await self.make()
            except BrokerUnavailable as error:
                log.info("no room is made in the stream", detail=str(error))

    async def make(self) -> None:
        """Make room, if there is need and something that is safe. Raises `BrokerUnavailable`."""
        taken = self._intake.taken
        if taken is None:
            return
        await self._covering(taken.size)
        now = self._intake.taken
        if now is None or now.source != taken.source:
            return  # The numbers are of another stream now.
        # The last message that was read stays: by it the next start knows the stream again.
        removed = await make_room(self._link, self._log_number, below=taken.sequence, timeout=_CALL_SECONDS)
        if removed:
            log.info("room was made in the stream", messages=removed, first=taken.sequence)
