"""Every certificate is renewed under load, and nobody notices. Longer: `python -m tests.faults.renewal`."""

from __future__ import annotations

import pytest

from services.cli.mesh.layout import Layout
from tests.faults.renewal import LIFE_SECONDS, renew_all
from tests.mesh.running import running_mesh, short_folder

pytestmark = pytest.mark.mesh


@pytest.mark.timeout(240)
async def test_no_call_fails_and_no_stream_is_cut_while_every_service_renews() -> None:
    with short_folder() as folder, running_mesh(folder, "--certificate-seconds", str(LIFE_SECONDS)) as mesh:
        outcome = await renew_all(mesh, folder / "load", renewals=2, per_second=90)
        broker = Layout(mesh.state).log("broker").read_text()
    assert "nats-server answers" in broker
    assert "connection without a lease cut" not in broker
    assert outcome.holds, outcome.report()
    assert outcome.fewest_renewals >= 2


@pytest.mark.timeout(240)
async def test_the_mesh_renews_through_the_second_kms_when_the_first_is_dead() -> None:
    options = ("--certificate-seconds", str(LIFE_SECONDS), "--kms-replica")
    with short_folder() as folder, running_mesh(folder, *options) as mesh:
        outcome = await renew_all(mesh, folder / "load", renewals=2, per_second=60, first_kms=False)
    assert outcome.holds, outcome.report()
    assert outcome.fewest_renewals >= 2
    assert outcome.kills
