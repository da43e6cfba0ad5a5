"""Responsible for places among calls that run at once, so that nobody has all of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from libs.errors import Code
from services.router.errors import RouterError


class CallsBusy(RouterError):
    """As many calls run as may, or as many of this caller's as leave room for others."""

    status = 503
    type = "service_unavailable"
    code = Code.RESOURCE_EXHAUSTED
    reason = "CALLS_BUSY"
    retry_seconds = 1


class Places:
    """So many places. Nobody takes one more than are left: alone, half of them; of several, each as many as are free.

    So whoever comes finds one until there are as many others as places, however much any of them asks for.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: Counter[str] = Counter()

    @contextmanager
    def taken(self, holder: str) -> Iterator[None]:
        """Hold a place while the context is open. Raises `CallsBusy`. Nothing is kept of whoever holds none."""
        if self._held.get(holder, 0) >= self._count - self._held.total():
            raise CallsBusy("too many calls at once; try again")
        self._held[holder] += 1
        try:
            yield
        finally:
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]
