"""A small log that may be pruned: what operators ordered of it is in it, and signed."""

from __future__ import annotations

from pathlib import Path

from libs.events.pruning import PruneOrdered
from libs.policy.orders import PRUNE_LOG, Order, SignedOrder
from libs.policy.prune_orders import Pruning
from libs.transparency.leaf import Kind
from services.ledger.intake.sequencer import Candidate
from services.ledger.storage.segments import Geometry
from tests.fakes.entry_schema import require_documented
from tests.fakes.written_log import ORIGIN, Author, WrittenLog

STOPPED = Geometry(zeros_ahead=100, sealed_at_stop=1)
"""Every stop seals, as if there were many entries; blocks are those of the format, which every process goes by."""


def signed_order(action: str, subject: str) -> SignedOrder:
    """Return an order as it stands in the log, where it was judged before; nobody signed this one."""
    return SignedOrder(Order("mesh.local", action, subject, 2**33, "a test"))


def allowing(ledger: Author, min_index: int) -> Candidate:
    """Return the entry that allows a log to be pruned."""
    body = PruneOrdered(min_index, 1, signed_order(PRUNE_LOG, Pruning(ORIGIN, min_index).subject)).body()
    require_documented(Kind.PRUNE, body)
    return ledger.entry(Kind.PRUNE, body)


def prunable_log(folder: Path) -> WrittenLog:
    """Ten entries in three segments, of which the first two, of four each, may be pruned."""
    log = WrittenLog(folder, geometry=STOPPED).create()
    ledger, router = log.ledger, log.router
    log.append([ledger.introduce()], [router.introduce(), router.receipt("one"), router.receipt("two")])
    log.append([router.receipt("three"), ledger.start()], [router.receipt("four")], [ledger.start()])
    log.geometry = Geometry(zeros_ahead=100)
    log.append([ledger.start()], [allowing(ledger, 8)])
    log.sign()
    return log
