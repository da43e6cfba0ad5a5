"""It is responsible for orders to prune the log: judged here under the policy in force, then said in the log.

Nothing is pruned by it. Each member's operator prunes that member's files while it is stopped, by what the log says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from libs.errors import Code, MeshError
from libs.events.pruning import PruneOrdered
from libs.policy.document import Policy
from libs.policy.orders import parse_order
from libs.policy.prune_orders import verify_pruning
from services.ledger.growth import Growth
from services.ledger.storage.prunings import read_prunings
from services.ledger.storage.store import LogStore


class PruneOfAnotherLog(MeshError):
    """The order is about another log than this one."""

    code = Code.INVALID_ARGUMENT
    reason = "PRUNE_OF_ANOTHER_LOG"


class EntriesNotSealed(MeshError):
    """Only what lies in sealed segments can be pruned: order it up to there, or wait."""

    reason = "ENTRIES_NOT_SEALED"


class PruneSayings(Protocol):
    """Where the ledger says that the log may be pruned."""

    async def prune_logged(self, said: PruneOrdered) -> None:
        """Return when the log has it. Raises `LedgerUnavailable`, `OutboxFull`."""
        ...


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the log says."""

    min_index: int
    """The first entry whose body stays."""
    index: int
    """Of the entry that says so."""


class PruneOrders:
    """Takes orders. The same order again gets the same answer."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        store: LogStore,
        growth: Growth,
        own: PruneSayings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`policy` returns the policy in force, or raises."""
        self._policy = policy
        self._store = store
        self._growth = growth
        self._own = own
        self._clock = clock

    async def allow(self, signed: bytes) -> Allowed:
        """Have the log say what is ordered; return once it does, and that counts.

        Raises what `verify_pruning` does, `PruneOfAnotherLog`, `EntriesNotSealed`, `LedgerUnavailable`, `OutboxFull`.
        """
        policy = self._policy()
        pruning = verify_pruning(signed, policy, self._clock())
        if pruning.origin != self._store.description.origin:
            raise PruneOfAnotherLog(
                f"the order is about {pruning.origin}, this log is {self._store.description.origin}"
            )
        files = self._store.index.files
        sealed = files[-1].end if files else 0
        if pruning.min_index > sealed:
            raise EntriesNotSealed(f"entries before {sealed} lie in sealed segments, others cannot be pruned yet")
        index = self._said(pruning.min_index)
        if index is None:
            await self._own.prune_logged(PruneOrdered(pruning.min_index, policy.version, parse_order(signed)))
            index = self._said(pruning.min_index)
        if index is None:
            raise RuntimeError("the log has an entry that allows pruning, and it is not found")
        # Whoever had it written: one that no majority holds may be lost again, and nothing be allowed.
        await self._growth.beyond(index)
        return Allowed(pruning.min_index, index)

    def _said(self, limit: int) -> int | None:
        return read_prunings(self._store.index, self._store.reader).entry_for(limit)
