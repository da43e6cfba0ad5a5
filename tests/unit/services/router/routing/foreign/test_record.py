"""Sessions of foreign providers: logged once, and here for as long as they are in force, cited or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from libs.aci.session import session_id
from libs.transparency.leaf import Kind
from services.registry.sessions import draft_session
from services.router.errors import NotFound
from services.router.proof.kept_receipts import StoredReceipt
from services.router.proof.store import open_receipt_store
from services.router.routing.foreign.record import SessionRecord
from tests.fakes.leases import node_lease
from tests.fakes.ledgers import LedgerTwin

DAY = 24 * 3600


@dataclass(slots=True)
class StandingTwin:
    session: bytes | None
    supporting: tuple[bytes, ...] = ()


async def test_a_session_that_nobody_cites_is_here_as_long_as_it_is_verified(tmp_path: Path) -> None:
    """One of a provider that is rarely used outlives what the store keeps without being asked."""
    now, ledger = 1_000_000.0, LedgerTwin()
    document = draft_session(node_lease("n0"), "localhost:1").document
    standing = cast(Any, StandingTwin(document))
    async with open_receipt_store(tmp_path / "r.db", clock=lambda: now) as store:
        record = SessionRecord(cast(Any, ledger), store.documents)
        await record.keep(standing)
        await store.receipts.put(StoredReceipt("rcpt-1", None, "t", b"{}", b"{}", bytes(32), bytes(32), 1))
        now += 2 * DAY
        await store.receipts.let_go(int(now), 1 << 30)
        with pytest.raises(NotFound):
            await record.find(session_id(document))
        await record.keep(standing)
        assert await record.find(session_id(document)) == document
    assert len(ledger.of(Kind.SESSION)) == 1
