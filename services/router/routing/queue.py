"""It is responsible for requests that wait because every node that may serve them is full.

Nobody looks again and again: whoever frees room, or hears of some, says so (`news`), and whoever is next is given it at
once. A turn is judged as an arrival is, by the same function; what it was judged by before counts for nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Hashable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from libs.errors import MeshError
from services.router.errors import Overloaded, RouterStopping
from services.router.metrics import RoutingMetrics
from services.router.routing.line import Line
from services.router.routing.preference import NodesFull
from services.router.routing.settings import RoutingSettings


class Place(Protocol):
    """What a turn gives."""

    def held(self) -> AbstractContextManager[None]:
        """Count as taken, until the context is left."""
        ...


P = TypeVar("P", bound=Place)


@dataclass(eq=False, slots=True)
class _Waiter(Generic[P]):
    take: Callable[[], P]
    wants: Hashable
    """What its turn depends on: where one is not served, none that wants the same is."""
    turn: asyncio.Future[P]
    holding: ExitStack = field(default_factory=ExitStack)


class Queue:
    """Lines of those who wait, one for each model for which anybody does."""

    def __init__(
        self, settings: RoutingSettings, metrics: RoutingMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._lines: dict[str, Line[_Waiter[Any]]] = {}
        self._told: set[str] = set()
        self._closed = False

    async def turn(self, model: str, tenant: str, wants: Hashable, take: Callable[[], P], seconds: float) -> P:
        """Return what `take` returns as soon as it does not raise `NodesFull`, in turn, within `seconds` at most.

        Raises `Overloaded`, `RouterStopping`, and what else `take` raises when the turn has come. Whoever is given a
        place MUST use it before anything else is awaited: until then it is held.
        """
        line = self._lines.get(model)
        if line is None:
            try:
                return take()
            except NodesFull:
                line = self._lines[model] = Line(self._settings.queue_length, self._clock())
        try:
            waiter: _Waiter[P] = _Waiter(take, wants, asyncio.get_running_loop().create_future())
            return await self._wait(line, model, tenant, waiter, seconds)
        finally:
            if not line and self._lines.get(model) is line:
                del self._lines[model]

    def news(self, models: Collection[str]) -> None:
        """Say that there may be room for these models. Whoever is next gets it once what runs now has paused."""
        for model in models:
            if model in self._lines and model not in self._told:
                self._told.add(model)
                asyncio.get_running_loop().call_soon(self._offer, model)

    def close(self) -> None:
        """Let nobody wait any more: whoever does is refused now, while there is time for a receipt of it."""
        self._closed = True
        for line in self._lines.values():
            for _, waiter in line.in_turn():
                if not waiter.turn.done():
                    waiter.turn.set_exception(self._stopping())

    async def _wait(self, line: Line[_Waiter[Any]], model: str, tenant: str, waiter: _Waiter[P], seconds: float) -> P:
        if self._closed:
            raise self._stopping()
        patience = min(seconds, self._settings.queue_seconds)
        if patience <= 0.0:
            raise self._overloaded(line, "no_time")
        displaced = line.join(tenant, waiter)
        if displaced is waiter:
            raise self._overloaded(line, "full")
        if displaced is not None and not displaced.turn.done():  # Done is who leaves by itself at this moment.
            displaced.turn.set_exception(self._overloaded(line, "displaced"))
        began = self._clock()
        self._metrics.waiting.add()
        # Whoever waits may want something else than this one, which may find room at once; but not before them.
        self.news((model,))
        # What is held for one that left, or has it, is let go. In the second case nothing else runs before it is used.
        with waiter.holding:
            try:
                async with asyncio.timeout(patience):
                    return await waiter.turn
            except TimeoutError as error:
                raise self._overloaded(line, "waited") from error
            finally:
                line.leave(tenant, waiter)
                if waiter.turn.done() and not waiter.turn.cancelled():
                    waiter.turn.exception()  # Of one that leaves in this very moment nobody else asks.
                self._metrics.waiting.add(amount=-1)
                self._metrics.waited_seconds.observe(self._clock() - began)

    def _offer(self, model: str) -> None:
        self._told.discard(model)
        line = self._lines.get(model)
        unserved: set[Hashable] = set()
        while line and self._serve_next(line, unserved):
            pass

    def _serve_next(self, line: Line[_Waiter[Any]], unserved: set[Hashable]) -> bool:
        """Give the next who can be served their turn; say whether there was one."""
        for tenant, waiter in line.in_turn():
            if waiter.turn.done() or (tenant, waiter.wants) in unserved:
                continue
            try:
                place = waiter.take()
            except NodesFull:
                unserved.add((tenant, waiter.wants))
                continue
            except MeshError as refusal:
                waiter.turn.set_exception(refusal)
            else:
                waiter.holding.enter_context(place.held())
                waiter.turn.set_result(place)
            line.served(tenant, waiter, self._clock())
            return True
        return False

    def _stopping(self) -> RouterStopping:
        self._metrics.turned_away.add("stopping")
        return RouterStopping("this router is about to stop; ask again")

    def _overloaded(self, line: Line[_Waiter[Any]], why: str) -> Overloaded:
        self._metrics.turned_away.add(why)
        return Overloaded(line.retry_seconds(self._clock(), self._settings.queue_seconds))
