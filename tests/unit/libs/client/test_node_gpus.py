"""A client holds the GPUs that the node's receipt names against those that answered in the node's evidence."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from libs import jcs
from libs.aci import receipt_gpus
from libs.aci.receipt import parse, sign
from libs.aci.receipt_events import ServedByNode
from libs.client.checks import Check, Materials, run_checks
from libs.policy.document import read
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.gathered import gathered

REQUEST, RESPONSE = b'{"messages":[]}', b'{"choices":[]}'


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    """One whose node shows two GPUs. Tests change what they were given, never the mesh."""
    made = AttestedMesh.create(int(time.time()))
    made.machine.gpus.plug(made.now)
    claims = {**made.workloads["node"].claims, receipt_gpus.CLAIM: True}
    made.evidence["node"] = made.prove("node", claims, gpus=True)
    return made


def checked(mesh: AttestedMesh, gpus: str | None, *, required: bool = True) -> Sequence[Check]:
    """The checks of an exchange whose node's receipt names these."""
    return run_checks(_naming(mesh, gpus, required=required))


def _naming(mesh: AttestedMesh, gpus: str | None, *, required: bool) -> Materials:
    honest = gathered(mesh, REQUEST, RESPONSE)
    assert isinstance(honest.receipt, bytes)
    receipt, own = parse(honest.receipt), mesh.node_receipt(REQUEST, RESPONSE, gpus=gpus)
    named = {"receipt": own.decode(), "receipt_sha256": hashlib.sha256(own).hexdigest()}
    events = tuple(replace(event, **named) if isinstance(event, ServedByNode) else event for event in receipt.events)
    signed = sign(replace(receipt, events=events), mesh.receipt_key)
    draft = mesh.gpu_policy_draft()
    draft["roles"]["node"]["gpu_required"] = required
    return replace(honest, policy=read(draft), receipt=signed, commitment=jcs.dumps(mesh.commit(signed)))


def failures(checks: Sequence[Check]) -> dict[int, str | None]:
    return {check.number: check.reason for check in checks if not check.passed}


def ueids(mesh: AttestedMesh) -> list[str]:
    return [gpu.ueid for gpu in mesh.machine.gpus.devices]


def test_the_gpus_of_the_evidence_are_accepted_and_shown(mesh: AttestedMesh) -> None:
    checks = checked(mesh, receipt_gpus.listed(ueids(mesh)))
    assert failures(checks) == {}
    assert all(ueid in checks[6].detail for ueid in ueids(mesh))


def test_other_gpus_than_those_of_the_evidence_are_refused(mesh: AttestedMesh) -> None:
    one, two = ueids(mesh)
    for named in ([one], [one, two, "7"], ["7"]):
        for required in (True, False):
            checks = checked(mesh, receipt_gpus.listed(named), required=required)
            assert failures(checks) == {7: "NODE_GPUS_NOT_EVIDENCED"}


def test_none_are_refused_where_policy_requires_a_gpu(mesh: AttestedMesh) -> None:
    assert failures(checked(mesh, None)) == {7: "NODE_GPUS_NOT_NAMED"}
    assert failures(checked(mesh, None, required=False)) == {}


def test_a_node_that_was_measured_before_receipts_named_gpus_is_accepted(mesh: AttestedMesh) -> None:
    earlier = replace(mesh, evidence={**mesh.evidence, "node": mesh.prove("node", gpus=True)})
    assert failures(checked(earlier, None)) == {}


def test_gpus_that_no_evidence_shows_are_refused(mesh: AttestedMesh) -> None:
    bare = replace(mesh, evidence={**mesh.evidence, "node": mesh.prove("node")})
    checks = checked(bare, receipt_gpus.listed(ueids(mesh)), required=False)
    assert failures(checks) == {7: "NODE_GPUS_NOT_EVIDENCED"}
