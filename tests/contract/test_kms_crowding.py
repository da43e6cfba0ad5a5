"""Whoever makes the KMS say much neither fills the log nor keeps operators from being heard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import kms_pb2 as pb
from teemesh.kms.v1 import kms_pb2_grpc as pb_grpc

from libs.identity.authority import KmsAuthority
from libs.identity.certificate import make_csr, parse
from libs.identity.sealed import ReceiverKey
from libs.policy.revocation import RevocationKind
from libs.tee.challenge import Challenge
from libs.transparency.leaf import Kind
from services.kms.certified import CERTIFICATES_PER_MINUTE
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.kms_callers import calling, operator
from tests.fakes.refusals import refusal
from tests.fakes.running_kms import RunningKms, running_kms

KEYRING = "ledger-keyring"
OUTWARD = pb.IssueServerCertificateRequest(
    csr=make_csr(ec.generate_private_key(ec.SECP256R1())), dns_names=["api.example"]
)


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
    async with calling(mesh, running, "router") as (stub, _):
        assert await refusal(wants(stub, KEYRING)) == "KEY_NOT_ALLOWED"
        assert await refusal(stub.IssueServerCertificate(OUTWARD, timeout=10)) == "OUTBOX_FULL"
    async with operator(running) as stub:
        signed = mesh.revocation(RevocationKind.TENANT, "12" * 16)
        await stub.Revoke(pb.RevokeRequest(signed_revocation=signed), timeout=10)
        second = mesh.successor(running.core.policy.current)
        await stub.PublishPolicy(pb.PublishPolicyRequest(signed_policy=second), timeout=10)
        await stub.RotateKey(pb.RotateKeyRequest(name="models/a", epoch=2), timeout=10)
    assert [kind for kind, _ in running.log.outbox] == [Kind.REVOCATION, Kind.POLICY]
    assert running.log.decisions == ["rotated models/a"]


async def asks_in_the_bootstrap(mesh: JoinedMesh, running: RunningKms, role: str) -> bytes:
    """Return a certificate of the bootstrap listener's."""
    authority = KmsAuthority((running.bootstrap,), TRUST_DOMAIN)
    key = ec.generate_private_key(ec.SECP256R1())
    return (await authority.issue(Asking(mesh, role, key), running.core.policy.current)).certificate


@dataclass(frozen=True, slots=True)
class Asking:
    """A service that wants a certificate."""

    mesh: JoinedMesh
    role: str
    key: ec.EllipticCurvePrivateKey
    instance: str = "1"

    @property
    def csr(self) -> bytes:
        return make_csr(self.key)

    async def prove(self, challenge: Challenge) -> bytes:
        return self.mesh.evidence(self.role, challenge, self.key).document


@pytest.mark.parametrize("role", ["broker", "ledger", "kms"])
async def test_while_the_outbox_is_crowded_those_who_empty_it_are_certified(
    mesh: JoinedMesh, running: RunningKms, role: str
) -> None:
    running.log.crowded = True
    assert parse(await asks_in_the_bootstrap(mesh, running, role)).role == role


@pytest.mark.parametrize("role", ["agent", "attestation", "registry", "router"])
async def test_while_the_outbox_is_crowded_nobody_else_is_certified(
    mesh: JoinedMesh, running: RunningKms, role: str
) -> None:
    running.log.crowded = True
    assert await refusal(asks_in_the_bootstrap(mesh, running, role)) == "OUTBOX_FULL"
    assert running.log.outbox == []


async def test_who_asks_for_certificates_in_a_loop_is_refused_and_on_record_once(
    mesh: JoinedMesh, running: RunningKms
) -> None:
    async with calling(mesh, running, "router") as (stub, router):
        for _ in range(CERTIFICATES_PER_MINUTE):
            await stub.IssueServerCertificate(OUTWARD, timeout=10)
        for _ in range(3):
            assert await refusal(stub.IssueServerCertificate(OUTWARD, timeout=10)) == "CERTIFICATES_TOO_MANY"
    *given, (kind, said) = running.log.outbox
    assert len(given) == CERTIFICATES_PER_MINUTE
    assert (kind, said["decision"], said["reason"]) == (Kind.KEY_DECISION, "refused", "CERTIFICATES_TOO_MANY")
    assert (said["name"], said["spiffe_id"]) == ("certificate", router.spiffe_id)


async def test_who_renews_in_a_loop_is_refused(mesh: JoinedMesh, running: RunningKms) -> None:
    for _ in range(CERTIFICATES_PER_MINUTE):
        await asks_in_the_bootstrap(mesh, running, "router")
    assert await refusal(asks_in_the_bootstrap(mesh, running, "router")) == "CERTIFICATES_TOO_MANY"
    assert await asks_in_the_bootstrap(mesh, running, "registry")
