"""It is responsible for changes of keys reaching the log: said once durable, and again until the log has them."""

from __future__ import annotations

from libs.events.publish import LedgerUnavailable
from services.kms.book import KeyBook
from services.kms.changes import Change
from services.kms.decisions import Decisions


class Unlogged:
    """What the book holds to be unlogged, and what of it the outbox has taken in this process."""

    def __init__(self, book: KeyBook, decisions: Decisions) -> None:
        self._book = book
        self._decisions = decisions
        self._taken: set[Change] = set()

    async def say(self, change: Change) -> None:
        """Record a change and wait until the ledger holds it. Raises `LedgerUnavailable` and what the outbox raises."""
        self._taken.add(change)
        try:
            await self._decisions.changed(change.to_body())
        except LedgerUnavailable:
            raise  # The outbox has it.
        except BaseException:
            self._taken.discard(change)
            raise

    async def say_again(self) -> None:
        """Record what no outbox of this process has taken: an earlier start's, or what found the outbox full.

        Raises what the outbox raises; the rest is said the next time.
        """
        for change in self._book.pages.unlogged:
            if change not in self._taken:
                await self._decisions.changed_earlier(change.to_body())
                self._taken.add(change)
