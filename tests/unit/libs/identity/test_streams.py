"""Streams that were let in under a fresh policy: they bring no work once it is stale."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from libs.identity.freshness import MAX_SILENCE_SECONDS, PolicyStale
from libs.identity.gate import MeshGate
from libs.identity.lease import Leases
from libs.identity.streams import Streams
from libs.rpc.policies import ANY_ROLE, MethodRule
from tests.fakes.certified_router import CertifiedRouter
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore, hear

STREAM = MethodRule(roles=ANY_ROLE, long_lived=True)
BOUNDED = MethodRule(roles=ANY_ROLE)
WITHOUT_LEASE = MethodRule(roles=ANY_ROLE, lease=False, long_lived=True)


@dataclass(frozen=True, slots=True)
class Server:
    """Lets one router in."""

    gate: MeshGate
    streams: Streams
    router: CertifiedRouter

    async def running(self, rule: MethodRule) -> asyncio.Task[None]:
        caller, begun = self.gate.admit(self.router.certificate.pem, rule), asyncio.Event()

        async def call() -> None:
            with self.gate.hold(caller, rule):
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(call())
        await begun.wait()
        return task


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def serving(mesh: JoinedMesh, kms: KmsCore, clock: Clock) -> AsyncIterator[Server]:
    policy, router = mesh.keeper("server", clock=clock), CertifiedRouter(mesh, kms, clock)
    leases, streams = Leases(policy, lambda: kms.ca.spki), Streams(policy)
    leases.open(router.certificate, router.evidence.document)
    async with mesh.member("ledger", kms, keeper=policy) as member:
        yield Server(MeshGate(TRUST_DOMAIN, member.identity, policy, leases, streams), streams, router)


async def ended(task: asyncio.Task[None]) -> None:
    await asyncio.gather(task, return_exceptions=True)


async def test_a_stream_that_needs_a_lease_ends_when_policy_is_stale_and_nothing_else_does(
    mesh: JoinedMesh, kms: KmsCore, clock: Clock
) -> None:
    async with serving(mesh, kms, clock) as server:
        stream, bounded, free = [await server.running(rule) for rule in (STREAM, BOUNDED, WITHOUT_LEASE)]
        clock.now += MAX_SILENCE_SECONDS - 1
        server.streams.sweep()
        await asyncio.sleep(0)
        assert not stream.cancelling()
        clock.now += 2
        server.streams.sweep()
        with pytest.raises(PolicyStale):
            await stream
        for task in (bounded, free):
            assert not task.cancelling()
            task.cancel()
            await ended(task)


async def test_a_stream_ends_with_the_reason_also_when_policy_is_fresh_again_by_then(
    mesh: JoinedMesh, kms: KmsCore, clock: Clock
) -> None:
    """Else nobody would tell its caller that it is over."""
    async with serving(mesh, kms, clock) as server:
        stream = await server.running(STREAM)
        clock.now += MAX_SILENCE_SECONDS + 1
        server.streams.sweep()
        hear(server.gate._policy, clock.now)
        with pytest.raises(PolicyStale):
            await stream
        again = await server.running(STREAM)
        server.streams.sweep()
        assert not again.cancelling()
        again.cancel()
        await ended(again)


async def test_a_caller_that_gives_a_stream_up_is_told_nothing(mesh: JoinedMesh, kms: KmsCore, clock: Clock) -> None:
    async with serving(mesh, kms, clock) as server:
        stream = await server.running(STREAM)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
        clock.now += MAX_SILENCE_SECONDS + 1
        server.streams.sweep()


async def test_a_stream_ends_with_an_expired_policy_however_fresh(mesh: JoinedMesh, kms: KmsCore, clock: Clock) -> None:
    async with serving(mesh, kms, clock) as server:
        stream = await server.running(STREAM)
        clock.now = mesh.draft["not_after"]
        hear(server.gate._policy, clock.now)
        server.streams.sweep()
        with pytest.raises(PolicyStale):
            await stream
