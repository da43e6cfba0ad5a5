"""Responsible for who is next among those who wait: tenants take turns, and each one's own come in order.

A full line has room for whoever has fewer in it than another: the last to come of the tenant with the most makes way.
So no tenant keeps another out, however many requests it has.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import zip_longest
from typing import Generic, TypeVar

W = TypeVar("W")

_REMEMBERED = 32
"""From how many departures the pace is told."""
MAX_RETRY_SECONDS = 60


class Line(Generic[W]):
    """At most `length` who wait. They MUST be hashable, and no two equal."""

    def __init__(self, length: int, began: float) -> None:
        self._length = length
        self._tenants: OrderedDict[str, dict[W, None]] = OrderedDict()
        self._waiting = 0
        self._began = began
        self._departures: deque[float] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        return self._waiting

    def join(self, tenant: str, waiter: W) -> W | None:
        """Take a place at the end; return who has to leave for want of room, if anybody: perhaps the waiter itself."""
        leaving: W | None = None
        if self._waiting >= self._length:
            crowd = max(self._tenants, key=lambda name: len(self._tenants[name]), default=tenant)
            # One fewer and one more must still leave them in this order, or two tenants would push each other out.
            if len(self._tenants.get(crowd, ())) <= len(self._tenants.get(tenant, ())) + 1:
                return waiter
            leaving = next(reversed(self._tenants[crowd]))
            self.leave(crowd, leaving)
        self._tenants.setdefault(tenant, {})[waiter] = None
        self._waiting += 1
        return leaving

    def leave(self, tenant: str, waiter: W) -> None:
        """Give up a place, if there is one."""
        waiters = self._tenants.get(tenant, {})
        if waiter in waiters:
            del waiters[waiter]
            self._waiting -= 1
            if not waiters:
                del self._tenants[tenant]

    def served(self, tenant: str, waiter: W, now: float) -> None:
        """Somebody's turn has come: the others' tenants are before this one now."""
        self.leave(tenant, waiter)
        if tenant in self._tenants:
            self._tenants.move_to_end(tenant)
        self._departures.append(now)

    def in_turn(self) -> Iterator[tuple[str, W]]:
        """Yield who waits, in the order in which they are to be served. Nobody may join or leave meanwhile."""
        for row in zip_longest(*([(tenant, waiter) for waiter in own] for tenant, own in self._tenants.items())):
            yield from (each for each in row if each is not None)

    def retry_seconds(self, now: float, unknown: float) -> int:
        """Return after how many seconds whoever is turned away may find room: when those who wait now are served, at
        the pace at which others were. `unknown` is for a line in which nobody was yet.
        """
        if not self._departures:
            return _bounded(unknown)
        full = len(self._departures) == _REMEMBERED
        since = self._departures[0] if full else self._began
        pace = len(self._departures) / max(now - since, 0.001)
        return _bounded(self._waiting / pace)


def _bounded(seconds: float) -> int:
    return min(max(math.ceil(seconds), 1), MAX_RETRY_SECONDS)
