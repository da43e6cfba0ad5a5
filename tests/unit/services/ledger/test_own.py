"""What the ledger says of itself, as its publisher gets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from libs.events.consume import StreamGap
from libs.events.outbox import OutboxFull
from libs.events.publish import Publisher
from libs.transparency.leaf import Kind
from services.ledger.intake.own import OwnEntries
from services.ledger.intake.rejections import Reason, Refusal
from services.ledger.intake.sequencer import Candidate, Outcome, Verdict
from tests.fakes.entry_schema import require_documented

ISSUER = b"\x0a" * 32


class Taken:
    """A publisher's outbox that takes what is documented."""

    issuer = ISSUER

    def __init__(self) -> None:
        self.full = False
        self.entries: list[tuple[Kind, Mapping[str, Any]]] = []

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: None) -> None:
        if self.full:
            raise OutboxFull("no room")
        require_documented(kind, body)
        self.entries.append((kind, body))


async def test_all_that_it_says_is_documented_and_names_what_happened() -> None:
    taken = Taken()
    own = OwnEntries(cast(Publisher, taken))
    await own.start(3, bytes(32), 7)
    await own.gap(b"\x01" * 16, StreamGap(4, 9))
    candidate = Candidate(Kind.RECEIPT, ISSUER, 5, b"\x02" * 32, 1, b"\x03" * 16, b"")
    await own.conflict(Verdict(candidate, Outcome.CONFLICT, 1, b"\x04" * 32))
    await own.quarantine(Refusal(6, Reason.KIND_NOT_ALLOWED, "", b"", ISSUER, 8), b"\x05" * 32)
    assert [kind for kind, _ in taken.entries] == [Kind.START, Kind.GAP, Kind.CONFLICT, Kind.QUARANTINE]
    bodies = [body for _, body in taken.entries]
    assert (bodies[0]["epoch"], bodies[0]["recovered_size"]) == (3, 7)
    assert (bodies[1]["from"], bodies[1]["to"]) == (4, 9)
    assert (bodies[2]["logged"], bodies[2]["refused"]) == ("04" * 32, "02" * 32)
    assert (bodies[3]["issuer_seq"], bodies[3]["reason"]) == (8, "KIND_NOT_ALLOWED")


async def test_a_full_outbox_does_not_stop_the_reading_that_empties_it() -> None:
    taken = Taken()
    taken.full = True
    await OwnEntries(cast(Publisher, taken)).gap(b"\x01" * 16, StreamGap(4, 9))
    assert taken.entries == []
