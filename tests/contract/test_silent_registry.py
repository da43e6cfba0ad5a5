"""A registry that keeps a watch open and says nothing on it is left for another, where there is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from teemesh.registry.v1 import registry_pb2

from libs.identity.any_peer import AnyPeer
from services.attestation.leases import LiveLeases
from services.router.routing.upstreams import Upstreams
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.registries import until
from tests.fakes.registry_twin import RegistryTwin, registry_twin
from tests.fakes.running_attestation import registry_binding

NODE = registry_pb2.Provider(
    spiffe_id="spiffe://mesh.test/node/1",
    endpoint="127.0.0.1:9",
    evidence_digest=bytes(32),
    spki_sha256=bytes(32),
    lease_until_ms=2**52,
)


@asynccontextmanager
async def registry_at(mesh: JoinedMesh, kms: KmsCore, instance: str, twin: RegistryTwin) -> AsyncIterator[str]:
    async with (
        mesh.member("registry", kms, instance=instance) as member,
        member.serve([registry_binding(twin)]) as running,
    ):
        yield f"127.0.0.1:{running.port}"


@pytest.mark.parametrize("role", ["router", "attestation"])
async def test_who_follows_a_registry_that_falls_silent_goes_on_at_another(
    mesh: JoinedMesh, kms: KmsCore, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    monkeypatch.setattr("services.router.routing.registry._WATCH_SILENCE_SECONDS", 0.3)
    monkeypatch.setattr("services.attestation.leases._SILENCE_SECONDS", 0.3)
    silent, speaking = registry_twin(), registry_twin()
    speaking.events.put_nowait(registry_pb2.WatchResponse(snapshot=registry_pb2.Snapshot(providers=[NODE])))
    async with (
        registry_at(mesh, kms, "silent", silent) as first,
        registry_at(mesh, kms, "speaking", speaking) as second,
        mesh.member(role, kms) as member,
        asyncio.TaskGroup() as tasks,
    ):
        registries: AnyPeer = member.any_peer("registry", [first, second])
        upstreams, leases = Upstreams(member, registries), LiveLeases(registries)
        following = tasks.create_task(upstreams.follow() if role == "router" else leases.follow())
        await until(lambda: bool(upstreams._known or leases.listed))
        following.cancel()
