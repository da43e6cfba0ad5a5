"""Whatever befalls the members, in whatever order: one writer an epoch, one log, nothing that counted is lost.

More of it: `python -m tests.unit.services.ledger.replication.simulated --rounds 500`.
"""

from __future__ import annotations

import pytest

from .simulated import simulate


@pytest.mark.parametrize("members", [3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_members_that_fail_in_any_order_keep_one_log(members: int, seed: int) -> None:
    seen = simulate(seed, members, seconds=100)
    assert seen["began"] > 1
    assert seen["acknowledged"] > 20
