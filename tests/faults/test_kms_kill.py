"""A KMS may die anywhere, and nothing that it promised is lost. Longer: `python -m tests.faults.kms_kill`."""

from __future__ import annotations

import pytest

from tests.faults.kms_kill import kill_kms
from tests.mesh.running import short_folder


@pytest.mark.timeout(120)
async def test_a_kms_that_dies_at_any_write_keeps_its_root_every_epoch_and_what_the_log_is_to_hear() -> None:
    with short_folder() as folder:
        outcome = await kill_kms(folder, kills=10, seed=1)
    assert outcome.holds, outcome.report()
    assert outcome.killed >= 10
    assert outcome.joined == 2
