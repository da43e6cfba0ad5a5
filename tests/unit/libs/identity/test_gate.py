"""The mesh listener over real mutual TLS: role, lease, and the reason that each refused caller is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.identity.certificate import Subject, issue, key_pem, pem_of
from libs.identity.lease import caller_lease
from libs.identity.member import Member
from libs.rpc.channel import open_channel
from libs.rpc.errors import reason_of
from libs.rpc.policies import MethodRule, ServiceBinding, current_caller
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.refusals import refusal
from tests.fakes.small_mesh import KMS, LEDGER, kms_servicer, ledger_servicer


async def statement() -> kms_pb2.GetStatementResponse:
    caller = current_caller()
    claims = "" if caller.lease is None else str(caller_lease().appraisal.workload_claims["log_key"])
    return kms_pb2.GetStatementResponse(statement=caller.spiffe_id.encode(), signature=claims.encode())


async def tail() -> AsyncIterator[ledger_pb2.TailResponse]:
    yield ledger_pb2.TailResponse()
    await asyncio.Event().wait()


def bindings() -> list[ServiceBinding]:
    return [
        ServiceBinding(
            KMS,
            lambda server: kms_pb2_grpc.add_KmsServiceServicer_to_server(kms_servicer(statement), server),
            {f"/{KMS}/GetStatement": MethodRule(roles=frozenset({"router", "operator"}))},
        ),
        ServiceBinding(
            LEDGER,
            lambda server: ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger_servicer(tail), server),
            {f"/{LEDGER}/Tail": MethodRule(roles=frozenset({"router", "operator"}), long_lived=True)},
        ),
    ]


@asynccontextmanager
async def server(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[tuple[Member, str]]:
    async with mesh.member("ledger", kms) as ledger, ledger.serve(bindings()) as serving:
        yield ledger, f"127.0.0.1:{serving.port}"


def channel_of(member: Member, target: str) -> grpc.aio.Channel:
    """A channel that presents nothing by itself, unlike a `Peer`."""
    current = member.identity.current
    return open_channel(
        target,
        root_pem=member.ca_pem,
        server_name=f"ledger.{TRUST_DOMAIN}",
        key_pem=current.key_pem,
        certificate_pem=current.certificate.pem,
    )


def channel_with(key: ec.EllipticCurvePrivateKey, der: bytes, ledger: Member, target: str) -> grpc.aio.Channel:
    """A channel of whoever holds this key and certificate, be it no member at all."""
    return open_channel(
        target,
        root_pem=ledger.ca_pem,
        server_name=f"ledger.{TRUST_DOMAIN}",
        key_pem=key_pem(key),
        certificate_pem=pem_of(der),
    )


async def present(channel: grpc.aio.Channel, document: bytes) -> None:
    stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
    await stub.PresentEvidence(evidence_pb2.PresentEvidenceRequest(document=document), timeout=10)


async def ask(channel: grpc.aio.Channel) -> kms_pb2.GetStatementResponse:
    return await kms_pb2_grpc.KmsServiceStub(channel).GetStatement(kms_pb2.GetStatementRequest(), timeout=10)


async def test_without_a_lease_the_caller_is_asked_for_its_evidence_and_then_known(
    mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with (
        server(mesh, kms) as (_, target),
        mesh.member("router", kms, claims={"log_key": "ab"}) as router,
        channel_of(router, target) as channel,
    ):
        assert await refusal(ask(channel)) == "EVIDENCE_REQUIRED"
        await present(channel, router.identity.current.evidence.document)
        answer = await ask(channel)
        assert (answer.statement, answer.signature) == (router.spiffe_id.encode(), b"ab")


async def test_somebody_elses_evidence_earns_no_lease(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with (
        server(mesh, kms) as (ledger, target),
        mesh.member("router", kms) as router,
        mesh.member("router", kms, instance="2") as other,
        channel_of(router, target) as channel,
    ):
        for document in (other.identity.current.evidence.document, ledger.identity.current.evidence.document):
            assert await refusal(present(channel, document)) == "EVIDENCE_MISMATCH"
        assert await refusal(ask(channel)) == "EVIDENCE_REQUIRED"


async def test_another_role_is_refused_whatever_its_evidence(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with (
        server(mesh, kms) as (_, target),
        mesh.member("registry", kms) as registry,
        channel_of(registry, target) as channel,
    ):
        await present(channel, registry.identity.current.evidence.document)
        assert await refusal(ask(channel)) == "ROLE_NOT_ALLOWED"


async def test_a_person_has_no_evidence_to_present_and_needs_none(mesh: JoinedMesh, kms: KmsCore) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    der = kms.ca.issue_svid(
        Subject(TRUST_DOMAIN, "operator", "ada", None), key.public_key(), mesh.draft["not_before"] + 3600
    )
    async with (
        server(mesh, kms) as (ledger, target),
        channel_with(key, der, ledger, target) as channel,
    ):
        assert (await ask(channel)).statement == f"spiffe://{TRUST_DOMAIN}/operator/ada".encode()
        assert await refusal(present(channel, b"{}")) == "EVIDENCE_MISMATCH"


async def test_a_person_s_stream_ends_with_the_certificate(mesh: JoinedMesh, kms: KmsCore) -> None:
    """People have no lease, so nothing else would end it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = Subject(TRUST_DOMAIN, "operator", "ada", None)
    der = issue(subject, key.public_key(), kms.ca.key, kms.ca.certificate, now=time.time(), lifetime_seconds=3)
    async with (
        server(mesh, kms) as (ledger, target),
        channel_with(key, der, ledger, target) as channel,
    ):
        call = ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest())
        assert await call.read() == ledger_pb2.TailResponse()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
    assert reason_of(error.value) == "CERTIFICATE_NOT_ACCEPTED"


async def test_a_certificate_of_another_trust_domain_opens_no_door(mesh: JoinedMesh, kms: KmsCore) -> None:
    """Even from the same CA: what it names is not of this mesh."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = Subject("other.test", "operator", "ada", None)
    der = issue(subject, key.public_key(), kms.ca.key, kms.ca.certificate, now=mesh.draft["not_before"] + 3600)
    async with (
        server(mesh, kms) as (ledger, target),
        channel_with(key, der, ledger, target) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ask(channel)
    assert (error.value.code(), reason_of(error.value)) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")


async def test_a_certificate_for_outward_tls_opens_no_door_inside(mesh: JoinedMesh, kms: KmsCore) -> None:
    """It is from the mesh CA too, but for servers only, and names no member."""
    key = ec.generate_private_key(ec.SECP256R1())
    der = kms.ca.issue_server_certificate(key.public_key(), ["api.example"], [], mesh.draft["not_before"] + 3600)
    async with server(mesh, kms) as (ledger, target), channel_with(key, der, ledger, target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await ask(channel)
    assert reason_of(error.value) in (None, "CERTIFICATE_NOT_ACCEPTED")


async def test_a_stale_server_takes_no_work_but_still_exchanges_evidence(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with (
        server(mesh, kms) as (ledger, target),
        mesh.member("router", kms) as router,
        channel_of(router, target) as channel,
    ):
        await present(channel, router.identity.current.evidence.document)
        # A version of which no statement has been heard in time, because its validity is over.
        ledger.policy.accept(mesh.successor(ledger.policy.current, not_after=mesh.draft["not_before"] + 60))
        assert await refusal(ask(channel)) == "POLICY_NOT_VALID_NOW"
        stub = evidence_pb2_grpc.EvidenceServiceStub(channel)
        proof = await stub.GetEvidence(evidence_pb2.GetEvidenceRequest(), timeout=10)
        assert proof.document == ledger.identity.current.evidence.document
        wrong = stub.GetEvidence(evidence_pb2.GetEvidenceRequest(digest=bytes(32)), timeout=10)
        assert await refusal(wrong) == "EVIDENCE_UNKNOWN"


async def test_a_policy_change_cancels_what_runs_and_presenting_again_is_refused(
    mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with (
        server(mesh, kms) as (ledger, target),
        mesh.member("router", kms) as router,
        channel_of(router, target) as channel,
    ):
        document = router.identity.current.evidence.document
        await present(channel, document)
        call = ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest())
        assert await call.read() == ledger_pb2.TailResponse()
        ledger.policy.accept(mesh.successor(ledger.policy.current, roles=mesh.without("router")))
        assert await refusal(call.read()) == "EVIDENCE_REQUIRED"
        assert await refusal(ask(channel)) == "EVIDENCE_REQUIRED"
        assert await refusal(present(channel, document)) == "MEASUREMENT_NOT_ALLOWED"
