"""It is responsible for what the log says of vaults: which are closed for ever, which are erased, which are held, and
on which orders tag keys were given out.

It depends on the entries of kind ERASURE and on their order alone, so reading the log again says the same. Whether an
entry's word was good was judged before it was written, and can be judged again by anyone who reads it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import takewhile

import structlog

from libs.events.erasure import ErasureDone, ErasureOrdered, HoldChanged, TagKeyGiven, parse_erasure
from libs.events.records import SALT_SIZE, Entry, parse_entry
from libs.policy.orders import Order, SignedOrder
from libs.policy.vault_orders import VaultPart
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from services.ledger.storage.index import Index
from services.ledger.storage.reading import LogReader

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Erasure:
    """A part of a vault that is closed: nothing more is logged in it, and nothing in it is opened."""

    part: VaultPart
    ordered: bytes
    """Entry id of the order."""
    order: SignedOrder | None
    """What was signed; None where it was policy's own rule, and once it is done: the log has it."""
    done: bytes | None = None
    """Entry id of the entry that says that the shares are gone."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What was last ordered of a vault's hold, and by which entry."""

    held: bool
    entry: bytes


class Erasures:
    """Grows in the order of the log, by one caller at a time; anyone may ask meanwhile."""

    def __init__(self) -> None:
        self._by_part: dict[VaultPart, Erasure] = {}
        self._closed: set[tuple[int | None, bytes]] = set()
        self._outstanding: dict[VaultPart, Erasure] = {}
        self._holds: dict[bytes, Hold] = {}
        self._spent: set[bytes] = set()
        self._gifts: dict[bytes, bytes] = {}

    def take(self, entry: Entry) -> None:
        """Take in the next entry of kind ERASURE. Raises `ErasureMalformed`."""
        said, name = parse_erasure(entry.body), entry_id(entry.issuer, entry.issuer_seq)
        match said:
            case ErasureOrdered():
                self._order(said, name)
            case ErasureDone():
                self._finish(said, name)
            case HoldChanged():
                self._hold(said, name)
            case TagKeyGiven():
                self._gifts.setdefault(said.order.order.digest, name)

    def closing(self, vault_id: bytes, epoch: int) -> Erasure | None:
        """Return what closed a month of a vault, if anything did."""
        return self._by_part.get(VaultPart(vault_id, None)) or self._by_part.get(VaultPart(vault_id, epoch))

    def closes_any(self, months: Set[tuple[int, bytes]]) -> bool:
        """Whether anything closed any of these months, epochs and vaults: `closing` for many at once."""
        whole = ((None, vault_id) for _, vault_id in months)
        return not (self._closed.isdisjoint(months) and self._closed.isdisjoint(whole))

    def of(self, part: VaultPart) -> Erasure | None:
        """Return the erasure of a part, or of the whole that it is in."""
        return self._by_part.get(VaultPart(part.vault_id, None)) or self._by_part.get(part)

    def hold_of(self, vault_id: bytes) -> Hold | None:
        return self._holds.get(vault_id)

    def is_held(self, vault_id: bytes) -> bool:
        hold = self._holds.get(vault_id)
        return hold is not None and hold.held

    def is_spent(self, order: Order) -> bool:
        """Whether an order has changed a hold already. It never does again, whatever came since."""
        return order.digest in self._spent

    def gift_by(self, order: Order) -> bytes | None:
        """Return the id of the entry that says that a tag key was given out on this order, if one does."""
        return self._gifts.get(order.digest)

    def all(self) -> Sequence[Erasure]:
        return tuple(self._by_part.values())

    def outstanding(self) -> Sequence[Erasure]:
        """Return what is ordered and not done."""
        return tuple(self._outstanding.values())

    def _order(self, said: ErasureOrdered, name: bytes) -> None:
        if self.of(said.part) is not None:
            return  # It was asked for twice at once: the first one counts.
        if self.is_held(said.part.vault_id):
            log.error("an erasure does not count: the vault was held before it", vault=said.part.subject)
            return
        self._by_part[said.part] = self._outstanding[said.part] = Erasure(said.part, name, said.authority.order)
        self._closed.add((said.part.epoch, said.part.vault_id))

    def _finish(self, said: ErasureDone, name: bytes) -> None:
        erasure = self._outstanding.get(said.part)
        if erasure is not None and erasure.ordered == said.ordered:
            self._by_part[said.part] = replace(erasure, order=None, done=name)
            del self._outstanding[said.part]

    def _hold(self, said: HoldChanged, name: bytes) -> None:
        order = said.order.order
        if self._by_part.get(VaultPart(said.vault_id, None)) is not None or self.is_spent(order):
            return
        self._spent.add(order.digest)
        self._holds[said.vault_id] = Hold(said.held, name)


def logged_erasures(index: Index, reader: LogReader, size: int) -> Erasures:
    """Return what the first `size` entries of a log that nobody writes say. Raises `LogDamaged`."""
    erasures = Erasures()
    for at in takewhile(lambda each: each < size, index.of_kinds((Kind.ERASURE,))):
        erasures.take(parse_entry(reader.entry(at).row.body[SALT_SIZE:]))
    return erasures
