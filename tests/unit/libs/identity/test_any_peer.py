from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2

from libs.errors import Code, MeshError
from libs.identity.any_peer import AnyPeer
from libs.identity.member import Member
from libs.identity.peers import Peer
from libs.identity.statements import KmsStatements, StatementsEnded
from libs.policy.revocation import RevocationKind
from libs.rpc.errors import remote_errors
from tests.fakes.freezable import FreezableWay, freezable
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.running_kms import running_kms
from tests.unit.libs.identity.test_peers import Ticker, ended, ledger_at, tail_on

NOBODY = "127.0.0.1:9"


def peer(router: Member, kms: KmsCore, target: str) -> Peer:
    return Peer("ledger", target, router.identity, router.policy, lambda: kms.ca.spki)


async def test_the_first_that_is_there_is_used_and_stays(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with mesh.member("router", kms) as router, ledger_at(mesh, kms, Ticker()) as (_, target):
        away, there, other = (peer(router, kms, at) for at in (NOBODY, target, target))
        everyone = AnyPeer([away, there, other])
        with pytest.raises(MeshError, match="no connection"):
            _ = everyone.lease
        channel = await everyone.channel(30)
        assert channel is await there.channel(10)
        assert everyone.lease is there.lease
        assert await everyone.channel(30) is channel
        with pytest.raises(MeshError):
            _ = other.lease  # It was never asked.
        for each in (there, other):
            await each.close()


async def test_a_refusal_is_told_before_an_absence(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with mesh.member("router", kms) as router, ledger_at(mesh, kms, Ticker()) as (ledger, target):
        router.policy.accept_revocations([mesh.revocation(RevocationKind.NODE, ledger.spiffe_id)])
        refused, away = (peer(router, kms, at) for at in (target, NOBODY))
        for order, reason in (
            ([away, refused], "NODE_REVOKED"),
            ([refused, away], "NODE_REVOKED"),
            ([away], "PEER_UNREACHABLE"),
        ):
            with pytest.raises(MeshError) as refusal:
                await AnyPeer(order).channel(20)
            assert refusal.value.reason == reason


@dataclass(slots=True)
class Two:
    """Two instances, each at the end of a way that can be frozen."""

    ways: tuple[FreezableWay, FreezableWay]
    peers: tuple[Peer, Peer]
    everyone: AnyPeer = field(init=False)

    def __post_init__(self) -> None:
        self.everyone = AnyPeer(self.peers)

    async def asked(self) -> Peer:
        """Whose channel a call would get now."""
        channel = await self.everyone.channel(30)
        for peer in self.peers:
            if (link := peer.live_lease()) is not None and link is self.everyone.lease:
                assert channel is await peer.channel(30)
                return peer
        raise AssertionError("nobody's")

    @contextmanager
    def frozen(self, number: int) -> Iterator[Peer]:
        self.ways[number].freeze()
        yield self.peers[number]
        self.ways[number].thaw()


@asynccontextmanager
async def two_at(role: str, router: Member, kms: KmsCore, target: str) -> AsyncIterator[Two]:
    async with freezable(target) as one, freezable(target) as other:
        peers = [Peer(role, way.target, router.identity, router.policy, lambda: kms.ca.spki) for way in (one, other)]
        try:
            yield Two((one, other), (peers[0], peers[1]))
        finally:
            for each in peers:
                await each.close()


async def call(channel: grpc.aio.Channel, timeout: float) -> Any:
    with remote_errors():
        return await evidence_pb2_grpc.EvidenceServiceStub(channel).GetEvidence(
            evidence_pb2.GetEvidenceRequest(), timeout=timeout
        )


async def unanswered(peer: Peer) -> None:
    with pytest.raises(MeshError) as error:
        await call(await peer.channel(10), 0.5)
    assert error.value.code is Code.DEADLINE_EXCEEDED


async def test_an_instance_that_lets_a_call_run_into_its_deadline_is_passed_over_until_it_answers(
    mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with (
        mesh.member("router", kms) as router,
        ledger_at(mesh, kms, Ticker()) as (_, target),
        two_at("ledger", router, kms, target) as two,
    ):
        first, second = two.peers
        assert await two.asked() is first
        with two.frozen(0):
            await unanswered(first)
            assert await two.asked() is second
            with two.frozen(1):
                await unanswered(second)
                # Nobody is better now: the one that was chosen last stays.
                assert await two.asked() is second
        await call(await first.channel(10), 20)
        with two.frozen(1):
            await unanswered(second)
            assert await two.asked() is first


async def test_a_call_that_was_answered_by_a_refusal_makes_nobody_silent(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with (
        mesh.member("router", kms) as router,
        ledger_at(mesh, kms, Ticker()) as (_, target),
        two_at("ledger", router, kms, target) as two,
    ):
        channel = await two.everyone.channel(30)
        with pytest.raises(MeshError), remote_errors():
            await evidence_pb2_grpc.EvidenceServiceStub(channel).GetEvidence(
                evidence_pb2.GetEvidenceRequest(digest=bytes(32)), timeout=20
            )
        assert await two.asked() is two.peers[0]


async def test_an_instance_that_says_that_it_cannot_serve_is_passed_over(mesh: JoinedMesh, kms: KmsCore) -> None:
    """Its connection is as good as any: only what it answers shows that it is cut off, here from the KMS."""
    async with (
        mesh.member("router", kms) as router,
        mesh.member("ledger", kms, instance="2", keeper=mesh.keeper("stale", fresh=False)) as stale,
        stale.serve([Ticker().binding]) as cut_off,
        ledger_at(mesh, kms, Ticker()) as (serving, target),
    ):
        everyone = AnyPeer([router.peer("ledger", at) for at in (f"127.0.0.1:{cut_off.port}", target)])
        first = tail_on(await everyone.channel(30))
        assert everyone.lease.certificate.spiffe_id == stale.spiffe_id
        assert (await ended(first)).reason == "POLICY_STALE"
        assert await tail_on(await everyone.channel(30)).read() == ledger_pb2.TailResponse()
        assert everyone.lease.certificate.spiffe_id == serving.spiffe_id


async def test_an_instance_that_cannot_be_connected_to_leaves_the_others_their_share(
    mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with (
        mesh.member("router", kms) as router,
        ledger_at(mesh, kms, Ticker()) as (_, target),
        two_at("ledger", router, kms, target) as two,
    ):
        with two.frozen(0):
            assert await two.everyone.channel(10) is await two.peers[1].channel(10)


async def test_an_instance_whose_renewals_fell_silent_is_passed_over_until_they_are_heard_again(
    mesh: JoinedMesh, kms: KmsCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("libs.identity.link._SILENCE_SECONDS", 0.5)
    async with (
        mesh.member("router", kms) as router,
        ledger_at(mesh, kms, Ticker()) as (_, target),
        two_at("ledger", router, kms, target) as two,
        asyncio.timeout(30),
    ):
        first, second = two.peers
        assert await two.asked() is first
        with two.frozen(0):
            while not first.is_away:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
            assert await two.asked() is second
        while first.is_away:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def test_statements_come_from_another_instance_when_one_falls_silent(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with (
        running_kms(mesh, kms) as running,
        mesh.member("router", kms) as router,
        two_at("kms", router, kms, running.target) as two,
        asyncio.timeout(30),
    ):
        statements = KmsStatements(two.everyone, router.identity, silence_seconds=2.0)
        watch = statements.watch()
        first = await anext(watch)
        with two.frozen(0) as silent:
            with pytest.raises(StatementsEnded):
                await anext(watch)
            assert silent.is_away
            again = statements.watch()
            assert (await anext(again)).version == first.version
            assert await two.asked() is two.peers[1]
            await again.aclose()
