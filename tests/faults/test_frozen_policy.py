"""A registry process whose last statement is five minutes old answers nobody any more; another one goes on."""

from __future__ import annotations

import asyncio
import time

import pytest
from teemesh.registry.v1 import registry_pb2 as pb
from teemesh.registry.v1 import registry_pb2_grpc as pb_grpc

from libs.errors import MeshError
from libs.identity.freshness import MAX_SILENCE_SECONDS
from libs.identity.member import Member
from libs.rpc.errors import remote_errors
from services.devtee.machine import Machine
from tests.fakes.joined_mesh import JoinedMesh
from tests.faults.kms_processes import Later
from tests.faults.patience import until
from tests.faults.registry_processes import RegistryMesh
from tests.mesh.running import short_folder

_CALL_SECONDS = 10.0
_PATIENCE_SECONDS = 30.0


async def answer(reader: Member, target: str) -> str:
    """The reason with which a registry refuses to list its nodes, "listed" if it does not."""
    try:
        stub = pb_grpc.ProviderRegistryServiceStub(await reader.peer("registry", target).channel(_CALL_SECONDS))
        with remote_errors():
            await stub.ListProviders(pb.ListProvidersRequest(), timeout=_CALL_SECONDS)
    except MeshError as refusal:
        return refusal.reason
    return "listed"


@pytest.mark.timeout(120)
async def test_a_registry_stops_answering_when_its_last_statement_is_five_minutes_old() -> None:
    with short_folder() as folder:
        registry = RegistryMesh(JoinedMesh(folder, Machine.create(int(time.time()))), lease_seconds=15.0)
        async with registry.running(), registry.joined("router", "1", {}) as reader:
            old, other = registry.addresses
            process = registry.registries[0]
            await process.kill()
            await process.start(Later(MAX_SILENCE_SECONDS + 1))
            assert await process.ready()

            async def is_listed() -> bool:
                return await answer(reader, old) == "listed"

            async def is_refused() -> bool:
                return await answer(reader, old) == "POLICY_STALE"

            async with asyncio.timeout(_PATIENCE_SECONDS):
                await until(is_listed)
                process.tell()
                await until(is_refused)
            assert await answer(reader, other) == "listed"
