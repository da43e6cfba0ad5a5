"""Receipts and this router's disk: what a failure leaves undone is done by the next, and nobody waits for another."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from libs.aci.receipt_events import UpstreamVerified
from services.router.errors import NotFound
from tests.fakes.routers import RouterBench, prompt, router_bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[RouterBench]:
    async with router_bench(tmp_path) as bench:
        yield bench


def tell(folder: Path, statement: str) -> None:
    """Change the store's file behind the router's back, so that what it does there fails as on a bad disk."""
    with closing(sqlite3.connect(folder / "receipts.sqlite")) as other, other:
        other.execute(statement)


def fail(folder: Path, what: str) -> None:
    tell(folder, f"CREATE TRIGGER broken BEFORE {what} BEGIN SELECT RAISE(ABORT, 'the disk'); END")


def mend(folder: Path) -> None:
    tell(folder, "DROP TRIGGER broken")


async def test_a_session_is_handed_over_again_where_the_first_copy_was_not_kept(
    bench: RouterBench, tmp_path: Path
) -> None:
    fail(tmp_path, "INSERT ON receipts")
    await bench.run(prompt())
    upstream = bench.only_receipt().upstream
    assert isinstance(upstream, UpstreamVerified)
    session = bytes.fromhex(upstream.session_id)
    with pytest.raises(NotFound):
        await bench.store.documents.find(session)
    mend(tmp_path)
    await bench.run(prompt())
    assert await bench.store.documents.find(session)
