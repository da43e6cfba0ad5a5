from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from teemesh.attestation.v1 import attestation_pb2_grpc as pb_grpc

from libs.identity.challenges import Challenges
from services.attestation.__main__ import signer, watch
from services.attestation.appraisal import Appraisals, Appraiser
from services.attestation.archive import Archive
from services.attestation.collateral import CollateralCache
from services.attestation.feed import Feed
from services.attestation.gpu_tokens import GpuTokens
from services.attestation.servicer import (
    AttestationServicer,
    CollateralServicer,
    attestation_binding,
    mesh_collateral_binding,
)
from services.devtee.vendors import serving_vendors
from tests.fakes.joined_mesh import Clock, JoinedMesh, KmsCore
from tests.fakes.registry_twin import RegistryTwin, registry_twin
from tests.fakes.running_attestation import Attestation, registry_binding


@pytest.fixture
async def registry() -> RegistryTwin:
    return registry_twin()


@pytest.fixture
async def attestation(mesh: JoinedMesh, kms: KmsCore, registry: RegistryTwin) -> AsyncIterator[Attestation]:
    async with (
        mesh.member("registry", kms) as registry_member,
        registry_member.serve([registry_binding(registry)]) as listening,
        mesh.member("attestation", kms) as member,
        serving_vendors("127.0.0.1", 0, mesh.machine, lambda: int(Clock().now)) as vendors,
    ):
        archive, feed, clock = Archive(member.settings.state_dir / "archive", 1 << 30), Feed(1000), Clock()
        await archive.open()
        appraisals = Appraisals(archive, feed)
        current = member.identity.current
        challenges = Challenges(member.spiffe_id, lambda: (current.key, current.certificate.der), clock)
        appraiser = Appraiser(challenges, member.policy, appraisals, lambda: signer(member), clock)
        watching = watch(member, [f"127.0.0.1:{listening.port}"], archive, appraisals)
        servicer = AttestationServicer(challenges, appraiser, archive, feed, watching)
        collateral = mesh_collateral_binding(CollateralServicer(CollateralCache(vendors, 10), GpuTokens(vendors, 10)))
        async with member.serve([attestation_binding(servicer), collateral]) as running:
            target = f"127.0.0.1:{running.port}"
            yield Attestation(member, target, archive, feed, challenges, appraiser, clock, watching, registry)


@pytest.fixture
async def channel(mesh: JoinedMesh, kms: KmsCore, attestation: Attestation) -> AsyncIterator[grpc.aio.Channel]:
    async with mesh.member("router", kms) as router:
        yield await router.peer("attestation", attestation.target).channel(10)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> pb_grpc.AttestationServiceStub:
    return pb_grpc.AttestationServiceStub(channel)
