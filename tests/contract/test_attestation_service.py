"""The attestation service on both of its listeners."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.attestation.v1 import attestation_pb2 as pb
from teemesh.attestation.v1 import attestation_pb2_grpc as pb_grpc
from teemesh.attestation.v1 import collateral_pb2, collateral_pb2_grpc

from libs.errors import MeshError
from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.certificate import pem_of
from libs.identity.challenges import Challenges
from libs.identity.collateral import AttestationCollateral
from libs.identity.member import Member
from libs.rpc.channel import fetch_leaf, open_channel
from libs.rpc.errors import remote_errors
from libs.rpc.middleware import public_middleware
from libs.rpc.server import serving
from libs.tee.challenge import Challenge
from services.attestation.appraisal import Appraiser
from services.attestation.collateral import CollateralCache
from services.attestation.servicer import (
    AttestationServicer,
    CollateralServicer,
    attestation_binding,
    collateral_binding,
)
from services.devtee.pccs import serving_pccs
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore


@asynccontextmanager
async def collateral_listener(mesh: JoinedMesh) -> AsyncIterator[str]:
    leaf = make_bootstrap_leaf("attestation", TRUST_DOMAIN)
    async with serving_pccs("127.0.0.1", 0, mesh.machine.pki, lambda: int(Clock().now)) as url:
        binding = collateral_binding(CollateralServicer(CollateralCache(url, 10)))
        middleware = public_middleware(binding.methods)
        async with serving("127.0.0.1:0", leaf.credentials, [binding], middleware, drain_seconds=0) as running:
            yield f"127.0.0.1:{running.port}"


@dataclass(frozen=True, slots=True)
class Attestation:
    member: Member
    target: str


@pytest.fixture
async def attestation(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[Attestation]:
    async with mesh.member("attestation", kms) as member:
        current = member.identity.current
        challenges = Challenges(member.spiffe_id, lambda: (current.key, current.certificate.der))
        servicer = AttestationServicer(challenges, Appraiser(challenges, member.policy))
        async with member.serve([attestation_binding(servicer)]) as running:
            yield Attestation(member, f"127.0.0.1:{running.port}")


@pytest.fixture
async def stub(
    mesh: JoinedMesh, kms: KmsCore, attestation: Attestation
) -> AsyncIterator[pb_grpc.AttestationServiceStub]:
    async with mesh.member("router", kms) as router:
        yield pb_grpc.AttestationServiceStub(await router.peer("attestation", attestation.target).channel(10))


async def refusal(call: Any) -> str:
    with pytest.raises(MeshError) as error, remote_errors():
        await call
    return error.value.reason


async def challenge(stub: pb_grpc.AttestationServiceStub) -> Challenge:
    return Challenge.decode(
        (await stub.CreateChallenge(pb.CreateChallengeRequest(purpose="check"), timeout=10)).challenge
    )


def appraise(stub: pb_grpc.AttestationServiceStub, document: bytes, role: str) -> Any:
    return stub.Appraise(pb.AppraiseRequest(document=document, role=role), timeout=10)


async def test_a_challenge_is_signed_by_the_service_and_answered_once(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    asked = await challenge(stub)
    asked.verify_signed(attestation.member.identity.current.certificate.spki, int(Clock().now), 60)
    evidence = mesh.evidence("ledger", asked, ec.generate_private_key(ec.SECP256R1()))
    verdict = json.loads((await appraise(stub, evidence.document, "ledger")).appraisal)
    assert (verdict["role"], verdict["evidence_digest"]) == ("ledger", evidence.digest.hex())
    assert await refusal(appraise(stub, evidence.document, "ledger")) == "CHALLENGE_NOT_OPEN"


async def test_refused_evidence_has_spent_its_challenge_too(
    mesh: JoinedMesh, stub: pb_grpc.AttestationServiceStub
) -> None:
    evidence = mesh.evidence("ledger", await challenge(stub), ec.generate_private_key(ec.SECP256R1()))
    assert await refusal(appraise(stub, evidence.document, "kms")) == "MEASUREMENT_NOT_ALLOWED"
    assert await refusal(appraise(stub, evidence.document, "ledger")) == "CHALLENGE_NOT_OPEN"


async def test_evidence_for_another_challenger_is_refused(
    mesh: JoinedMesh, kms: KmsCore, stub: pb_grpc.AttestationServiceStub
) -> None:
    evidence = mesh.evidence("ledger", kms.challenges.issue("check"), ec.generate_private_key(ec.SECP256R1()))
    assert await refusal(appraise(stub, evidence.document, "ledger")) == "CHALLENGE_NOT_OPEN"


async def test_an_unknown_role_and_a_broken_document_are_refused(
    mesh: JoinedMesh, stub: pb_grpc.AttestationServiceStub
) -> None:
    evidence = mesh.evidence("ledger", await challenge(stub), ec.generate_private_key(ec.SECP256R1()))
    assert await refusal(appraise(stub, evidence.document, "nobody")) == "MEASUREMENT_NOT_ALLOWED"
    assert await refusal(appraise(stub, evidence.document[:-1], "ledger")) == "JSON_MALFORMED"


async def test_a_purpose_that_nobody_could_read_back_is_refused(stub: pb_grpc.AttestationServiceStub) -> None:
    for purpose in ("", "x" * 257):
        call = stub.CreateChallenge(pb.CreateChallengeRequest(purpose=purpose), timeout=10)
        assert await refusal(call) == "CHALLENGE_MALFORMED"


async def test_a_service_whose_policy_is_stale_appraises_nobody(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    policy = attestation.member.policy
    policy.accept(mesh.successor(policy.current, not_after=mesh.draft["not_before"] + 60))
    assert await refusal(appraise(stub, b"{}", "ledger")) == "POLICY_NOT_VALID_NOW"


async def test_collateral_comes_without_a_certificate_and_makes_evidence_verify(mesh: JoinedMesh) -> None:
    async with collateral_listener(mesh) as address:
        source = AttestationCollateral(address, TRUST_DOMAIN)
        quote = mesh.tds["router"].quote(b"x")
        collateral = await source.collateral(quote)
        assert collateral.is_current(int(Clock().now))
    assert await source.collateral(quote) is collateral  # Kept: the service is gone.


async def test_what_is_no_quote_gets_no_collateral(mesh: JoinedMesh) -> None:
    name = f"attestation-bootstrap.{TRUST_DOMAIN}"
    async with collateral_listener(mesh) as address:
        host, _, port = address.rpartition(":")
        leaf = await fetch_leaf(host, int(port), server_name=name, timeout=10)
        async with open_channel(address, root_pem=pem_of(leaf), server_name=name) as channel:
            stub = collateral_pb2_grpc.CollateralServiceStub(channel)
            call = stub.GetCollateral(collateral_pb2.GetCollateralRequest(quote=b"quote"), timeout=10)
            assert await refusal(call) == "QUOTE_MALFORMED"
