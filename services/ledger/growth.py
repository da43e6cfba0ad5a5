"""It is responsible for telling those who wait how far the log is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from libs.errors import Code, MeshError


class LogBehind(MeshError):
    """This member does not know of all that counts: ask the one that writes, or again."""

    code = Code.UNAVAILABLE
    reason = "LOG_BEHIND"


class Growth:
    """The durable size and its root. For use on the event loop alone."""

    def __init__(self, size: int, root: bytes, *, is_all: Callable[[], bool] = lambda: True) -> None:
        """`is_all` says whether nobody knows of more: else what is not known here may be in the log all the same."""
        self.size = size
        self.root = root
        self.is_all = is_all
        self.is_told: Callable[[], bool] = lambda: True
        """Whether this member hears of what the log grows by."""
        self._grown = asyncio.Event()

    def reach(self, size: int, root: bytes) -> None:
        self.size, self.root = size, root
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def require_all(self) -> None:
        """Raise `LogBehind` unless what is not known here is in no log. Before anyone is told that something is not."""
        if not self.is_all():
            raise LogBehind(f"this member knows of {self.size} leaves, and others may know of more: ask again")

    def require_told(self) -> None:
        """Raise `LogBehind` where the log may grow and nobody says so here. Before anyone is told that all is quiet."""
        if not self.is_told():
            raise LogBehind(f"this member hears of no writer, and knows of {self.size} leaves: ask another, or again")

    async def beyond(self, size: int) -> None:
        """Wait until the log has more than `size` leaves."""
        while self.size <= size:
            await self._grown.wait()
