"""Whoever makes the KMS say much neither fills the log nor keeps operators from being heard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs.identity.certificate import make_csr
from libs.identity.sealed import ReceiverKey
from libs.policy.revocation import RevocationKind
from libs.transparency.leaf import Kind
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.kms_callers import calling, operator
from tests.fakes.refusals import refusal
from tests.fakes.running_kms import RunningKms, running_kms

KEYRING = "ledger-keyring"


@pytest.fixture
async def running(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as kms_service:
        yield kms_service


def wants(stub: pb_grpc.KmsServiceStub, name: str) -> Any:
    request = pb.ReleaseKeyRequest(name=name, algorithm=pb.KEY_ALGORITHM_AES_256)
    return stub.ReleaseKey(request, timeout=10)


async def test_a_peer_that_asks_in_a_loop_is_on_record_once(mesh: JoinedMesh, running: RunningKms) -> None:
    async with calling(mesh, running, "router") as (stub, router):
        for _ in range(30):
            assert await refusal(wants(stub, KEYRING)) == "KEY_NOT_ALLOWED"
    ((_, said),) = running.log.outbox
    assert (said["decision"], said["spiffe_id"], said["reason"]) == ("refused", router.spiffe_id, "KEY_NOT_ALLOWED")


async def test_while_the_outbox_is_crowded_the_ledger_that_would_empty_it_can_start(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    running.log.crowded = True
    async with calling(mesh, running, "ledger", {"hpke_key": ReceiverKey().public.hex()}) as (stub, _):
        assert (await wants(stub, KEYRING)).sealed_key
    assert running.log.decisions == [f"released {KEYRING}"]


async def test_while_the_outbox_is_crowded_operators_are_heard_and_refusals_stay_refusals(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    running.log.crowded = True
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    async with calling(mesh, running, "router") as (stub, _):
        assert await refusal(wants(stub, KEYRING)) == "KEY_NOT_ALLOWED"
        outward = pb.IssueServerCertificateRequest(csr=csr, dns_names=["api.example"])
        assert (await stub.IssueServerCertificate(outward, timeout=10)).certificate
    async with operator(running) as stub:
        signed = mesh.revocation(RevocationKind.TENANT, "12" * 16)
        await stub.Revoke(pb.RevokeRequest(signed_revocation=signed), timeout=10)
        second = mesh.successor(running.core.policy.current)
        await stub.PublishPolicy(pb.PublishPolicyRequest(signed_policy=second), timeout=10)
        await stub.RotateKey(pb.RotateKeyRequest(name="models/a", epoch=2), timeout=10)
    assert [kind for kind, _ in running.log.outbox] == [Kind.ADMISSION, Kind.REVOCATION, Kind.POLICY]
    assert running.log.decisions == ["rotated models/a"]
