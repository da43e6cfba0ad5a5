"""A listed node's GPUs change under it: real registries, a KMS and a token service judge, nobody is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from teemesh.registry.v1 import registry_pb2 as pb
from teemesh.registry.v1 import registry_pb2_grpc as pb_grpc

from libs.identity.any_peer import AnyPeer
from libs.identity.gpu_watch import GpuSettings
from libs.tee.evidence import Evidence
from libs.tee.nvidia.report import parse_report
from services.devtee.gpus import Gpus, Mode
from services.devtee.machine import Machine
from tests.fakes.joined_mesh import JoinedMesh
from tests.fakes.leases import MODEL, WEIGHTS
from tests.fakes.running_attestation import collateral_listener
from tests.faults.patience import until
from tests.faults.registry_processes import RegistryMesh
from tests.faults.registry_users import Listed, listed_node
from tests.mesh.running import short_folder

_SECONDS = 5.0
_PATIENCE_SECONDS = 120.0


@dataclass(slots=True)
class Watched:
    node: Listed
    gpus: Gpus
    registry: AnyPeer

    async def listed(self) -> list[bytes]:
        """The digests of the evidence under which the node is listed: none or one."""
        stub = pb_grpc.ProviderRegistryServiceStub(await self.registry.channel(_SECONDS))
        response = await stub.ListProviders(pb.ListProvidersRequest(), timeout=_SECONDS)
        return [provider.evidence_digest for provider in response.providers]

    @property
    def evidence(self) -> Evidence:
        return self.node.member.identity.current.evidence

    def shown(self) -> int:
        """Of how many GPUs the node's evidence holds reports, all by this machine's devices."""
        assert self.evidence.gpu_evidence is not None
        reports = self.evidence.gpu_evidence.reports
        assert {raw.certificate_chain for raw in reports} <= {gpu.chain for gpu in self.gpus.devices}
        assert all(parse_report(raw.report) for raw in reports)
        return len(reports)


@asynccontextmanager
async def watched() -> AsyncIterator[Watched]:
    with short_folder() as folder:
        machine = Machine.create(int(time.time()))
        mesh = JoinedMesh(folder, machine)
        mesh.allow_models({MODEL: [WEIGHTS]})
        mesh.require_gpu("node")
        registry = RegistryMesh(mesh, lease_seconds=6.0)
        async with (
            registry.running(),
            collateral_listener(mesh) as attestation,
            registry.joined("router", "1", {}) as router,
            listed_node(
                registry, "one", mesh.tds["node"], attestation=attestation, gpus=GpuSettings(look_seconds=1)
            ) as node,
        ):
            yield Watched(node, machine.gpus, router.any_peer("registry", registry.addresses))


async def _is_listed(watched: Watched) -> bool:
    return await watched.listed() == [watched.evidence.digest]


async def _is_not_listed(watched: Watched) -> bool:
    return await watched.listed() == []


@pytest.mark.timeout(240)
async def test_a_node_is_listed_by_the_evidence_of_the_gpus_that_it_has_or_not_at_all() -> None:
    async with watched() as mesh, asyncio.timeout(_PATIENCE_SECONDS):
        await until(lambda: _is_listed(mesh))
        first = mesh.evidence.digest
        (gpu,) = mesh.gpus.devices

        # Confidential mode off: off the list, and no certificate any more.
        mesh.gpus.mode = Mode.OFF
        await until(lambda: _is_not_listed(mesh))
        assert mesh.evidence.digest == first
        mesh.gpus.mode = Mode.CONFIDENTIAL
        await until(lambda: _is_listed(mesh))
        second = mesh.evidence.digest
        assert second != first

        # One more.
        mesh.gpus.plug(int(time.time()))
        await until(lambda: _differs(mesh, second))
        assert mesh.shown() == 2
        third = mesh.evidence.digest

        # The first is exchanged: what is listed is never again what showed it.
        mesh.gpus.unplug(gpu)
        mesh.gpus.plug(int(time.time()))
        await until(lambda: _differs(mesh, third))
        assert mesh.shown() == 2


async def _differs(watched: Watched, before: bytes) -> bool:
    listed = await watched.listed()
    return listed == [watched.evidence.digest] and listed != [before]
