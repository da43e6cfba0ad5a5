"""Responsible for what the outbox's items add up to: which batches are unacknowledged, which records uncut.

Pure: it is fed the same items, in the same order, while running and when files are read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from libs.events.keyset import PreviousIssuer
from libs.events.outbox_items import Acknowledged, Cut, Item, Opened, OutboxDamaged, RecordFacts, Rejected, Stored
from libs.transparency.chain import entry_id


@dataclass(slots=True)
class _Pending:
    facts: RecordFacts
    part: int
    batch: Stored | None
    """None once the ledger has answered for the record."""
    uncut: bool = True
    acknowledged: bool = False


@dataclass(slots=True)
class _Issuer:
    opened: Opened
    last_seq: int
    pending: dict[int, _Pending] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Uncut:
    """A record of an earlier start of which nobody knows whether its response went out."""

    issuer: bytes
    issuer_seq: int
    facts: RecordFacts
    acknowledged: bool

    @property
    def entry_id(self) -> bytes:
        return entry_id(self.issuer, self.issuer_seq)


class OutboxState:
    """The issuers of one outbox, oldest first."""

    def __init__(self) -> None:
        self.highest_epoch = 0
        self._issuers: dict[bytes, _Issuer] = {}
        self._left: dict[int, int] = {}
        self._held: Counter[str] = Counter()

    def apply(self, part: int, items: Iterable[Item]) -> None:
        """Take in what became durable in one file. Raises `OutboxDamaged` for what cannot have been written."""
        self._left.setdefault(part, 0)
        for item in items:
            match item:
                case Opened():
                    self._open(item)
                case Stored():
                    self._store(part, item)
                case Acknowledged():
                    self.highest_epoch = max(self.highest_epoch, item.signer_epoch)
                    self._answered(item.issuer, item.issuer_seq, acknowledged=True)
                case Rejected():
                    self._answered(item.issuer, item.issuer_seq, acknowledged=False)
                    self._cut(item.issuer, item.issuer_seq)
                case Cut():
                    self._cut(item.issuer, item.issuer_seq)

    def claim(self, batch: Stored) -> None:
        """Count what a batch holds for its tenants, until it is done with. MUST come before it is applied, once."""
        for facts in batch.records:
            if facts.tenant is not None:
                self._held[facts.tenant] += facts.size

    def held(self, tenant: str) -> int:
        """Return how many bytes of a tenant's records are not done with."""
        return self._held[tenant]

    def latest(self) -> PreviousIssuer | None:
        """Return the newest issuer that has stored anything: the one that a new issuer follows."""
        for issuer, state in reversed(self._issuers.items()):
            if state.last_seq:
                return PreviousIssuer(issuer, state.last_seq)
            if state.opened.previous is not None:
                return state.opened.previous
        return None

    def last_seq(self, issuer: bytes) -> int:
        return self._issuers[issuer].last_seq

    def issuers(self) -> list[bytes]:
        return list(self._issuers)

    def unacknowledged(self, issuer: bytes) -> list[Stored]:
        """Return the batches that the ledger has not wholly answered for, in order."""
        batches = {
            pending.batch.first_seq: pending.batch
            for pending in self._issuers[issuer].pending.values()
            if pending.batch is not None
        }
        return [batches[first_seq] for first_seq in sorted(batches)]

    def awaited(self, issuer: bytes, issuer_seq: int) -> RecordFacts | None:
        """Return a record that the ledger has yet to answer for, or None."""
        pending = self._issuers[issuer].pending.get(issuer_seq)
        return None if pending is None or pending.batch is None else pending.facts

    def lowest_awaited(self, issuer: bytes) -> int | None:
        awaited = (number for number, pending in self._issuers[issuer].pending.items() if pending.batch is not None)
        return min(awaited, default=None)

    def uncut(self, issuer: bytes) -> list[Uncut]:
        return [
            Uncut(issuer, number, pending.facts, pending.acknowledged)
            for number, pending in sorted(self._issuers[issuer].pending.items())
            if pending.uncut
        ]

    def finished(self, part: int) -> bool:
        """Whether nothing in a file is needed for itself any more; the files before it may still need it."""
        return self._left.get(part, 0) == 0

    def forget(self, part: int) -> None:
        """The file is gone."""
        self._left.pop(part, None)

    def _open(self, item: Opened) -> None:
        known = self._issuers.get(item.issuer)
        if known is None:
            self._issuers[item.issuer] = _Issuer(item, item.last_seq)
        elif known.last_seq != item.last_seq:
            raise OutboxDamaged("a file does not continue the one before it")

    def _store(self, part: int, item: Stored) -> None:
        issuer = self._issuers.get(item.issuer)
        if issuer is None or item.first_seq != issuer.last_seq + 1:
            raise OutboxDamaged("a stored batch does not continue its issuer's sequence")
        for number, facts in enumerate(item.records, item.first_seq):
            issuer.pending[number] = _Pending(facts, part, item)
        issuer.last_seq = item.last_seq
        self._left[part] += len(item.records)

    def _answered(self, issuer: bytes, number: int, *, acknowledged: bool) -> None:
        if (pending := self._find(issuer, number)) is not None:
            pending.batch = None
            pending.acknowledged = acknowledged
            self._drop_if_done(issuer, number, pending)

    def _cut(self, issuer: bytes, number: int) -> None:
        if (pending := self._find(issuer, number)) is not None:
            pending.uncut = False
            self._drop_if_done(issuer, number, pending)

    def _find(self, issuer: bytes, number: int) -> _Pending | None:
        """Return a record still pending. One whose file is already gone is none: answers may outlive their file."""
        state = self._issuers.get(issuer)
        return None if state is None else state.pending.get(number)

    def _drop_if_done(self, issuer: bytes, number: int, pending: _Pending) -> None:
        if pending.batch is None and not pending.uncut:
            del self._issuers[issuer].pending[number]
            self._left[pending.part] -= 1
            self._release(pending.facts)

    def _release(self, facts: RecordFacts) -> None:
        if facts.tenant is not None:
            self._held[facts.tenant] -= facts.size
            if self._held[facts.tenant] <= 0:
                del self._held[facts.tenant]
