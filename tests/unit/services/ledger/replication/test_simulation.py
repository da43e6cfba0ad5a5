"""Whatever befalls the members, in whatever order: one writer an epoch, one log, nothing that counted is lost.

More of it: `python -m tests.unit.services.ledger.replication.simulation --rounds 500`.
"""

from __future__ import annotations

import pytest

from .simulation import simulate, simulate_slow_disks


@pytest.mark.parametrize("members", [3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_members_that_fail_in_any_order_keep_one_log(members: int, seed: int) -> None:
    seen = simulate(seed, members, seconds=100)
    assert seen["began"] > 1
    assert seen["acknowledged"] > 20


@pytest.mark.parametrize("members", [3, 5])
def test_disks_that_are_put_back_take_nothing_back(members: int) -> None:
    """Whoever believed such a disk wrote without what counted, once in some tens of seeds."""
    assert sum(simulate(seed, members, seconds=60)["put back"] for seed in range(100, 106)) > 8


@pytest.mark.parametrize("seed", range(2))
def test_five_members_go_on_when_two_are_lost_for_good(seed: int) -> None:
    """The writer of that moment is one of them; what it had acknowledged is there, and what comes after is."""
    seen = simulate(seed, 5, seconds=60, lost=2)
    assert seen["lost"] == 2
    assert seen["acknowledged"] > 20


@pytest.mark.parametrize("seed", range(3))
def test_members_whose_disks_are_slow_elect_one_where_they_are_given_the_time(seed: int) -> None:
    simulate_slow_disks(seed, 3, slow_seconds=(2.0, 4.0), election_seconds=15.0)
