"""What the ledger says of its own work, as its publisher gets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from libs.events.outbox import OutboxFull
from libs.events.publish import Publisher
from libs.transparency.leaf import Kind
from services.ledger.intake.own import OwnEntries
from tests.fakes.entry_schema import require_documented


class Taken:
    """A publisher's outbox that takes what is documented."""

    def __init__(self) -> None:
        self.full = False
        self.entries: list[tuple[Kind, Mapping[str, Any]]] = []

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: None, essential: bool) -> None:
        if self.full:
            raise OutboxFull("no room")
        require_documented(kind, body)
        assert essential  # Nobody who makes the ledger say much of faults keeps this out.
        self.entries.append((kind, body))


async def test_what_it_says_is_documented_and_has_the_reserve_of_its_outbox() -> None:
    taken = Taken()
    await OwnEntries(cast(Publisher, taken)).start(3, bytes(32), 7)
    [(kind, body)] = taken.entries
    assert (kind, body["epoch"], body["recovered_size"]) == (Kind.START, 3, 7)


async def test_a_full_outbox_does_not_stop_the_reading_that_empties_it() -> None:
    taken = Taken()
    taken.full = True
    await OwnEntries(cast(Publisher, taken)).start(3, bytes(32), 7)
    assert taken.entries == []
