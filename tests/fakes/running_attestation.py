"""An attestation service wired as in production, and those who call it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.attestation.v1 import attestation_pb2 as pb
from teemesh.attestation.v1 import attestation_pb2_grpc as pb_grpc
from teemesh.registry.v1 import registry_pb2_grpc

from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.challenges import Challenges
from libs.identity.member import Member
from libs.rpc.bounds import BOOTSTRAP
from libs.rpc.middleware import public_middleware
from libs.rpc.policies import MethodRule, ServiceBinding
from libs.rpc.server import serving
from libs.tee.challenge import Challenge
from services.attestation.appraisal import Appraiser
from services.attestation.archive import Archive
from services.attestation.collateral import CollateralCache
from services.attestation.feed import Feed
from services.attestation.gpu_tokens import GpuTokens
from services.attestation.servicer import CollateralServicer, Watching, collateral_binding
from services.devtee.vendors import serving_vendors
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh
from tests.fakes.registry_twin import RegistryTwin

PATIENCE_SECONDS = 20.0
NODE = f"spiffe://{TRUST_DOMAIN}/node/1"


@asynccontextmanager
async def collateral_listener(mesh: JoinedMesh) -> AsyncIterator[str]:
    leaf = make_bootstrap_leaf("attestation", TRUST_DOMAIN)
    async with serving_vendors("127.0.0.1", 0, mesh.machine, lambda: int(Clock().now)) as url:
        binding = collateral_binding(CollateralServicer(CollateralCache(url, 10), GpuTokens(url, 10)))
        middleware = public_middleware(binding.methods)
        async with serving(
            "127.0.0.1:0", leaf.credentials, [binding], middleware, drain_seconds=0, bounds=BOOTSTRAP
        ) as running:
            yield f"127.0.0.1:{running.port}"


@dataclass(frozen=True, slots=True)
class Attestation:
    member: Member
    target: str
    archive: Archive
    feed: Feed
    challenges: Challenges
    appraiser: Appraiser
    clock: Clock
    watching: Watching
    registry: RegistryTwin


def registry_binding(registry: RegistryTwin) -> ServiceBinding:
    name = "teemesh.registry.v1.ProviderRegistryService"
    return ServiceBinding(
        name=name,
        add=lambda server: registry_pb2_grpc.add_ProviderRegistryServiceServicer_to_server(registry, server),
        methods={
            f"/{name}/Watch": MethodRule(roles=frozenset({"attestation", "router"}), long_lived=True),
            f"/{name}/GetSession": MethodRule(roles=frozenset({"router"})),
        },
    )


async def challenge(stub: pb_grpc.AttestationServiceStub, purpose: str = "appraisal") -> Challenge:
    return Challenge.decode(
        (await stub.CreateChallenge(pb.CreateChallengeRequest(purpose=purpose), timeout=10)).challenge
    )


def appraise(stub: pb_grpc.AttestationServiceStub, document: bytes, role: str) -> Any:
    return stub.Appraise(pb.AppraiseRequest(document=document, role=role), timeout=10)


def ledger_evidence(mesh: JoinedMesh, asked: Challenge) -> bytes:
    return mesh.evidence("ledger", asked, ec.generate_private_key(ec.SECP256R1())).document


async def bundle(stub: pb_grpc.AttestationServiceStub, record_digest: bytes) -> bytes:
    request = pb.GetAppraisalRequest(record_digest=record_digest)
    return (await stub.GetAppraisal(request, timeout=10)).bundle


async def watched(stub: pb_grpc.AttestationServiceStub, after: int, count: int) -> list[pb.WatchAppraisalsResponse]:
    call = stub.WatchAppraisals(pb.WatchAppraisalsRequest(after_sequence=after))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return [await call.read() for _ in range(count)]  # type: ignore[misc]
    finally:
        call.cancel()


async def cover(stub: pb_grpc.AttestationServiceStub, max_age_seconds: int = 0) -> pb.GetCoverageResponse:
    return await stub.GetCoverage(pb.GetCoverageRequest(max_age_seconds=max_age_seconds), timeout=10)
