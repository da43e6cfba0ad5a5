"""The KMS's listener without client certificates: open to anyone, and it gives nobody anything for nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.kms.v1 import bootstrap_pb2 as pb
from teemesh.kms.v1 import bootstrap_pb2_grpc as pb_grpc

from libs.identity.authority import proven_kms
from libs.identity.certificate import make_csr, parse
from libs.policy.operator_request import OperatorRequest, sign_operator_request
from libs.tee.challenge import Challenge
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.refusals import refusal
from tests.fakes.running_kms import bootstrap_listener


@pytest.fixture
async def stub(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[pb_grpc.KmsBootstrapServiceStub]:
    async with (
        bootstrap_listener(mesh, kms) as address,
        proven_kms(address, TRUST_DOMAIN, kms.policy.current) as proven,
    ):
        yield pb_grpc.KmsBootstrapServiceStub(proven.channel)


async def challenge(stub: pb_grpc.KmsBootstrapServiceStub) -> Challenge:
    answer = await stub.CreateIssuanceChallenge(pb.CreateIssuanceChallengeRequest(), timeout=10)
    return Challenge.decode(answer.challenge)


async def test_a_certificate_for_evidence(mesh: JoinedMesh, stub: pb_grpc.KmsBootstrapServiceStub) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    document = mesh.evidence("registry", await challenge(stub), key).document
    request = pb.IssueCertificateRequest(csr=make_csr(key), document=document, instance="1")
    answer = await stub.IssueCertificate(request, timeout=10)
    assert parse(answer.certificate).spiffe_id == f"spiffe://{TRUST_DOMAIN}/registry/1"
    assert await refusal(stub.IssueCertificate(request, timeout=10)) == "CHALLENGE_NOT_OPEN"


async def test_a_certificate_for_an_operators_signature(
    mesh: JoinedMesh, kms: KmsCore, stub: pb_grpc.KmsBootstrapServiceStub
) -> None:
    key, operator = ec.generate_private_key(ec.SECP256R1()), mesh.operators[0]
    answer = await stub.CreateOperatorChallenge(pb.CreateOperatorChallengeRequest(), timeout=10)
    open_challenge = Challenge.decode(answer.challenge)
    wanted = OperatorRequest("operator", "ada", make_csr(key), open_challenge.nonce)
    request = pb.IssueOperatorCertificateRequest(
        role=wanted.role,
        name=wanted.name,
        csr=wanted.csr,
        challenge=open_challenge.encode(),
        operator_key=operator.public_key().public_bytes_raw(),
        signature=sign_operator_request(wanted, operator),
    )
    issued = await stub.IssueOperatorCertificate(request, timeout=10)
    assert parse(issued.certificate).role == "operator"
    assert issued.ca_certificate == kms.ca.certificate
    assert await refusal(stub.IssueOperatorCertificate(request, timeout=10)) == "CHALLENGE_NOT_OPEN"
    request.role = "auditor"
    assert await refusal(stub.IssueOperatorCertificate(request, timeout=10)) == "OPERATOR_SIGNATURE_INVALID"


@pytest.mark.parametrize("hostile", [b"", b"{}", b"\xff", b"[" * 10_000])
async def test_hostile_requests_are_refused_as_such(stub: pb_grpc.KmsBootstrapServiceStub, hostile: bytes) -> None:
    malformed = {"JSON_MALFORMED", "CHALLENGE_MALFORMED", "EVIDENCE_MALFORMED"}
    asked = stub.GetKmsEvidence(pb.GetKmsEvidenceRequest(challenge=hostile), timeout=10)
    assert await refusal(asked) in malformed
    request = pb.IssueCertificateRequest(csr=hostile, document=hostile, instance="1")
    assert await refusal(stub.IssueCertificate(request, timeout=10)) == "CSR_MALFORMED"
    request.csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    assert await refusal(stub.IssueCertificate(request, timeout=10)) in malformed


async def test_a_call_without_a_deadline_is_refused(stub: pb_grpc.KmsBootstrapServiceStub) -> None:
    call = stub.CreateIssuanceChallenge(pb.CreateIssuanceChallengeRequest())
    assert await refusal(call) == "DEADLINE_REQUIRED"
