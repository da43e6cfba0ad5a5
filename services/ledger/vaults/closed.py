"""It is responsible for what is said of vaults by what counts of the log alone, so by every member alike."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set

from libs.events.records import SALT_SIZE, parse_entry
from libs.events.vault import PUBLIC_VAULT_ID
from libs.transparency.leaf import Kind
from services.ledger.growth import Growth
from services.ledger.storage.reading import StoredEntry
from services.ledger.storage.selection import Selection
from services.ledger.storage.store import LogStore
from services.ledger.vaults.erasures import Erasures

_ERASURES = Selection(kinds=frozenset({Kind.ERASURE}))


class ClosedVaults:
    """Follows the log as far as it counts. For use on the event loop alone."""

    def __init__(self, store: LogStore, growth: Growth) -> None:
        self._store = store
        self._growth = growth
        self._erasures = Erasures()
        self._size = 0
        self._following = asyncio.Lock()

    async def closed_by(self, entries: Sequence[StoredEntry]) -> list[int | None]:
        """Return, for each entry, the index of the order that closed its part of its vault, once the log has one.

        So it is until something is awaited, and likewise below.
        """
        if any(stored.row.vault_id != PUBLIC_VAULT_ID for stored in entries):
            await self._follow()
        return [self._order_of(stored) for stored in entries]

    async def are_open(self, frames: Sequence[Set[tuple[int, bytes]]]) -> list[bool]:
        """Return, for the months of each frame, epochs and vaults, whether the log has no order that closed any."""
        await self._follow()
        return [not self._erasures.closes_any(months) for months in frames]

    async def said(self) -> Erasures:
        """Return what the log says of vaults."""
        await self._follow()
        return self._erasures

    def _order_of(self, stored: StoredEntry) -> int | None:
        if stored.row.vault_id == PUBLIC_VAULT_ID:
            return None
        erasure = self._erasures.closing(stored.row.vault_id, stored.row.vault_epoch)
        return None if erasure is None else self._store.index.find(erasure.ordered)

    async def _follow(self) -> None:
        """Take in what the log says since the last time, also what came to count meanwhile."""
        while self._size != self._growth.size:
            # A reader that goes away must not have the next one take in the same entries beside it.
            await asyncio.shield(self._take_in())

    async def _take_in(self) -> None:
        """At first this is of the whole log, which takes long in a long log."""
        async with self._following:
            size = self._growth.size
            if next(self._store.index.selected(_ERASURES, self._size, size), None) is not None:
                await asyncio.to_thread(self._take, size)
            self._size = size

    def _take(self, size: int) -> None:
        for index in self._store.index.selected(_ERASURES, self._size, size):
            self._erasures.take(parse_entry(self._store.reader.entry(index).row.body[SALT_SIZE:]))
            # Never twice, also where the next one cannot be read: an order that a hold stopped might count then.
            self._size = index + 1
