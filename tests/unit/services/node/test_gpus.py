"""Receipts name the GPUs that an appraisal of the node's evidence finds."""

from __future__ import annotations

import time

from libs.aci.receipt_gpus import listed
from libs.policy.document import read
from libs.tee.appraisal import AppraisalContext, OwnNonce, appraise
from libs.tee.evidence import Evidence
from services.node.gpus import EvidencedGpus
from tests.fakes.attested_mesh import AttestedMesh


def judged(mesh: AttestedMesh, evidence: Evidence) -> str | None:
    """What an appraisal finds."""
    rules = read(mesh.gpu_policy_draft()).rules("node")
    context = AppraisalContext(mesh.now, evidence.spki, OwnNonce(evidence.challenge.nonce), policy_version=1)
    verdict = appraise(evidence, rules, context).gpu
    assert verdict is not None
    return listed([device.ueid for device in verdict.devices])


def test_they_are_those_of_the_evidence_of_now() -> None:
    mesh = AttestedMesh.create(int(time.time()))
    held = [mesh.prove("node", gpus=True)]
    gpus = EvidencedGpus(lambda: held[-1])
    for _ in range(2):
        assert gpus.named() == judged(mesh, held[-1])
    mesh.machine.gpus.plug(mesh.now)
    held.append(mesh.prove("node", gpus=True))
    assert gpus.named() == judged(mesh, held[1]) != judged(mesh, held[0])
    held.append(mesh.prove("node"))
    assert gpus.named() is None
