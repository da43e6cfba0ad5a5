"""It is responsible for what readers are given of closed vaults: by the log alone, so by every member alike."""

from __future__ import annotations

from collections.abc import Set

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

    def closed_by(self, stored: StoredEntry) -> int | None:
        """Return the index of the order that closed an entry's part of its vault, once the log has one."""
        if stored.row.vault_id == PUBLIC_VAULT_ID:
            return None
        self._follow()
        erasure = self._erasures.closing(stored.row.vault_id, stored.row.vault_epoch)
        return None if erasure is None else self._store.index.find(erasure.ordered)

    def are_open(self, months: Set[tuple[int, bytes]]) -> bool:
        """Whether the log has no order that closed any of these months, epochs and vaults."""
        self._follow()
        return not self._erasures.closes_any(months)

    def _follow(self) -> None:
        """Take in what the log says since the last time."""
        size = self._growth.size
        if size == self._size:
            return
        for index in self._store.index.selected(_ERASURES, self._size, size):
            self._erasures.take(parse_entry(self._store.reader.entry(index).row.body[SALT_SIZE:]))
        self._size = size
