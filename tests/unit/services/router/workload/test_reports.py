"""Reports over a guest agent whose TD is a running one of a mesh."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, cast

import pytest

from libs.aci import report
from libs.aci.report import Report, SourceProvenance
from libs.tee import eventlog, tdx
from services.router.workload.workload import Reports, Workload
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.foreign_routers import MachineCollateral, TdGuest

NONCE = "ab" * 32


@dataclass(frozen=True, slots=True)
class MemberTwin:
    guest: TdGuest


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


async def reported(mesh: AttestedMesh, guest: TdGuest) -> Report:
    workload = Workload("spiffe://mesh.test/router/1", 1)
    reports = Reports(cast(Any, MemberTwin(guest)), workload, MachineCollateral(mesh), SourceProvenance())
    return report.parse(await reports.report(NONCE))


@pytest.mark.parametrize("strips_digests", [False, True])
async def test_the_event_log_states_every_digest_whatever_the_agent_leaves_out(
    mesh: AttestedMesh, strips_digests: bool
) -> None:
    said = (await reported(mesh, TdGuest(mesh, strips_digests=strips_digests))).evidence
    log = eventlog.parse(json.loads(said["event_log"]))
    assert log == mesh.workloads["router"].event_log
    assert all(len(event.digest) == 48 for event in log)
    eventlog.verify_replay(log, tdx.read_report(bytes.fromhex(said["quote"])).rtmrs)


async def test_the_vm_config_is_the_agents_own(mesh: AttestedMesh) -> None:
    said = (await reported(mesh, TdGuest(mesh))).evidence
    assert said["vm_config"] == mesh.workloads["router"].td.machine.image.vm_config
