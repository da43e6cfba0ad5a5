"""Whoever may watch is told of every appraisal, and goes on where they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from teemesh.attestation.v1 import attestation_pb2 as pb
from teemesh.attestation.v1 import attestation_pb2_grpc as pb_grpc

from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.refusals import refusal, refused
from tests.fakes.running_attestation import Attestation, appraise, challenge, ledger_evidence, watched


async def test_watchers_are_told_of_every_appraisal_and_go_on_where_they_were(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    accepted = await appraise(stub, ledger_evidence(mesh, await challenge(stub)), "ledger")
    await refused(appraise(stub, ledger_evidence(mesh, await challenge(stub)), "kms"))
    first, second = await watched(stub, 1000, 2)
    assert [each.sequence for each in (first, second)] == [1001, 1002]
    assert first.made.record_digest == accepted.record_digest
    assert [first.made.refusal, second.made.refusal] == ["", "MEASUREMENT_NOT_ALLOWED"]
    assert (first.made.role, first.made.spiffe_id, first.made.policy_version) == ("ledger", "", 1)
    assert await watched(stub, 1001, 1) == [second]


@pytest.mark.parametrize("after", [999, 1001])
async def test_a_watch_from_where_nothing_is_held_is_refused(stub: pb_grpc.AttestationServiceStub, after: int) -> None:
    call = stub.WatchAppraisals(pb.WatchAppraisalsRequest(after_sequence=after))
    assert await refusal(call.read()) == "SEQUENCE_NOT_HELD"


OBSERVING: list[Callable[[pb_grpc.AttestationServiceStub], Any]] = [
    lambda stub: stub.GetCoverage(pb.GetCoverageRequest(), timeout=10),
    lambda stub: stub.WatchAppraisals(pb.WatchAppraisalsRequest()).read(),
]


@pytest.mark.parametrize("observe", OBSERVING)
async def test_a_node_may_not_watch_the_others(
    mesh: JoinedMesh, kms: KmsCore, attestation: Attestation, observe: Callable[[Any], Any]
) -> None:
    async with mesh.member("node", kms, claims={"models": []}) as node:
        channel = await node.peer("attestation", attestation.target).channel(10)
        assert await refusal(observe(pb_grpc.AttestationServiceStub(channel))) == "ROLE_NOT_ALLOWED"
