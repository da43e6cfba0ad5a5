"""It is responsible for turns at something that cannot be done for all at once: so many at a time, and whoever waits is
taken in turn with others, however often each of them wants it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turn:
    """What somebody may do now."""

    def __init__(self) -> None:
        self.rest_seconds = 0.0
        """For how long, when it is over, its place is to be nobody's."""


class Turns:
    """So many places."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        """Who waits, by whose turn is next."""

    @asynccontextmanager
    async def taken(self, who: Hashable, patience_seconds: float) -> AsyncIterator[Turn]:
        """Hold a place while the context is open. Raises `TimeoutError` on entry, where there is none in time."""
        async with asyncio.timeout(patience_seconds):
            await self._enter(who)
        turn = Turn()
        try:
            yield turn
        finally:
            if turn.rest_seconds > 0.0:
                asyncio.get_running_loop().call_later(turn.rest_seconds, self._pass_on)
            else:
                self._pass_on()

    async def _enter(self, who: Hashable) -> None:
        if self._free:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(who, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._leave(who, place)
            else:
                self._pass_on()  # It was given the place as it left.
            raise

    def _leave(self, who: Hashable, place: asyncio.Future[None]) -> None:
        line = self._waiting.get(who, deque())
        if place in line:
            line.remove(place)
            if not line:
                del self._waiting[who]

    def _pass_on(self) -> None:
        while self._waiting:
            who, line = self._waiting.popitem(last=False)
            place = line.popleft()
            if line:
                self._waiting[who] = line
            if not place.done():  # Else it is leaving at this moment.
                place.set_result(None)
                return
        self._free += 1
