"""Registries and nats-server may die at any time. Longer: `python -m tests.faults.registry_kill`."""

from __future__ import annotations

import pytest

from tests.faults.registry_kill import kill_registries
from tests.mesh.running import short_folder


@pytest.mark.timeout(240)
async def test_no_node_is_lost_none_that_is_revoked_served_and_all_watchers_see_the_same_while_registries_die() -> None:
    with short_folder() as folder:
        outcome = await kill_registries(folder, seconds=20, seed=1, nodes=6, watchers=3, lease_seconds=6.0)
    assert outcome.holds, outcome.report()
    assert outcome.kills
