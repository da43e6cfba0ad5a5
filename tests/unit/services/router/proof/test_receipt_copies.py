"""Copies of receipts and this router's disk: what a failure leaves undone is done by the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.aci.receipt_events import UpstreamVerified
from services.router.errors import NotFound
from tests.fakes.receipt_disk import fail, mend
from tests.fakes.routers import RouterBench, prompt


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
