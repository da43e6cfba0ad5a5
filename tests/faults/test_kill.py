"""Every process is killed under load, and what was answered stays answered. Longer: `python -m tests.faults.kill`."""

from __future__ import annotations

import pytest

from tests.faults.kill import kill_all
from tests.faults.targets import TARGETS
from tests.mesh.running import RunningMesh, short_folder

pytestmark = pytest.mark.mesh


@pytest.mark.timeout(400)
async def test_every_process_comes_back_and_no_recorded_answer_lacks_its_entry(mesh: RunningMesh) -> None:
    with short_folder() as folder:
        outcome = await kill_all(mesh, folder, rounds=1)
    assert outcome.holds, outcome.report()
    assert set(outcome.recovery) == {target.name for target in TARGETS}
