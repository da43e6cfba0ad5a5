"""It is responsible for which keys are wanted, which the file lists, and which nats-server is known to have read.

The three differ while a change is on its way. It may be let in by any of them, but is done only when all are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from libs.errors import Code, MeshError


class KeyNotAdmitted(MeshError):
    """The key has no lease at the broker, or no longer: present the evidence behind it again."""

    code = Code.UNAUTHENTICATED
    reason = "KEY_NOT_ADMITTED"


class Listing:
    """The keys (SHA-256 of their SPKI) on their way from their leases to nats-server."""

    def __init__(self, write: Callable[[frozenset[bytes]], None]) -> None:
        """`write` MUST have put the keys on disk when it returns; what it raises is raised by whoever wanted them."""
        self._write = write
        self._wanted: frozenset[bytes] = frozenset()
        self._is_written = False
        self._read: frozenset[bytes] = frozenset()
        self._moved = asyncio.Event()
        self.stale = asyncio.Event()
        """The files may be newer than what the server has read."""

    @property
    def tolerated(self) -> frozenset[bytes]:
        """The keys whose connections stay: the server may have read a list that it has not confirmed.

        Who was taken off the list stays among them only until the server confirms the next one.
        """
        return self._read | self._wanted

    def want(self, keys: frozenset[bytes]) -> None:
        """List these keys alone. What failed to be written is written again by the next call, changed or not."""
        if keys != self._wanted or not self._is_written:
            self._wanted = keys
            self.rewrite()

    def rewrite(self) -> None:
        # A write that failed may have left either list on disk.
        self._is_written = False
        self._write(self._wanted)
        self._is_written = True
        self.stale.set()
        self._move()

    def begin_reading(self) -> frozenset[bytes]:
        """Return what a server that is told now to read reads, unless the list changes meanwhile: then it is stale."""
        if not self._is_written:
            self.rewrite()
        self.stale.clear()
        return self._wanted

    def confirm(self, keys: frozenset[bytes]) -> None:
        """The server has read these."""
        self._read = keys
        self._move()

    def forget(self) -> None:
        """The server is gone, and what the next one reads at its start may be replaced before it answers."""
        self._read = frozenset()
        self.stale.set()

    async def until_read(self, key: bytes) -> None:
        """Wait until the server has read this key. Raises `KeyNotAdmitted` when it is not to any more."""
        while True:
            if key not in self._wanted:
                raise KeyNotAdmitted("no lease of this key allows a connection to the broker")
            if key in self._read:
                return
            await self._moved.wait()

    def _move(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
