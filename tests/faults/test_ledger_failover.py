"""A writer is cut off under load, and the log stays one. Longer: `python -m tests.faults.ledger_failover`."""

from __future__ import annotations

import pytest

from tests.faults.ledger_failover import run

pytestmark = pytest.mark.mesh


@pytest.mark.timeout(240)
async def test_a_writer_that_is_cut_off_takes_nothing_with_it() -> None:
    seen = await run(rounds=1, seed=5)
    assert seen.holds, seen.report()
    assert list(seen.seconds) == ["writer cut off"]
