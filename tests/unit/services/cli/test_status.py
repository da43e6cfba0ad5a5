"""`teemesh status`: what it asks the attestation service for."""

from __future__ import annotations

import argparse
import time

import pytest
from teemesh.registry.v1 import registry_pb2

from libs.identity.member import Member
from services.cli.mesh import status
from services.cli.mesh.status import YOUNG_SECONDS, ask_coverage
from tests.fakes.joined_fixtures import kms, machine, mesh
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.unit.services.cli.attesting import access, attesting

__all__ = ["kms", "machine", "mesh"]


def parsed(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    status.add_parser(parser.add_subparsers())
    seconds: int = parser.parse_args(["status", *arguments]).evidence_age_seconds
    return seconds


def provider(node: Member, port: int) -> registry_pb2.Provider:
    """A node's lease, as the registry tells of it."""
    current = node.identity.current
    certificate = current.certificate
    return registry_pb2.Provider(
        spiffe_id=certificate.spiffe_id,
        endpoint=f"127.0.0.1:{port}",
        evidence_digest=current.evidence.digest,
        spki_sha256=certificate.spki_sha256,
        lease_until_ms=int((time.time() + 600) * 1000),
    )


async def test_evidence_counts_while_it_is_younger_than_asked_for(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with (
        attesting(mesh, kms) as service,
        mesh.member("node", kms, claims={"models": []}) as node,
        node.serve([]) as running,
    ):
        snapshot = registry_pb2.Snapshot(providers=[provider(node, running.port)])
        service.watching.leases.take(registry_pb2.WatchResponse(snapshot=snapshot))
        await service.watching.sweep.sweep()
        service.clock.now += 600
        operator = access(kms, attestation=service.target)
        covered, uncovered = [await ask_coverage(operator, seconds) for seconds in (3600, 120)]
    assert covered.startswith("evidence: 1 of 1 live leases rest on accepted evidence younger than 3600 s")
    assert uncovered.startswith("evidence: 0 of 1 live leases rest on accepted evidence younger than 120 s")
    assert uncovered.endswith(f"{node.spiffe_id}: EVIDENCE_TOO_OLD")


def test_evidence_counts_for_an_hour_unless_told_otherwise() -> None:
    assert parsed() == YOUNG_SECONDS == 3600
    assert parsed("--evidence-age-seconds", "60") == 60


@pytest.mark.parametrize("age", ["0", "-1", "1.5", str(2**32), "an hour"])
def test_an_age_that_is_none_is_refused(age: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(f"--evidence-age-seconds={age}")
    assert ended.value.code == 2
