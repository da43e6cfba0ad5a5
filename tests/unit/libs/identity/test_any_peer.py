from __future__ import annotations

import pytest

from libs.errors import MeshError
from libs.identity.any_peer import AnyPeer
from libs.identity.member import Member
from libs.identity.peers import Peer
from libs.policy.revocation import RevocationKind
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.unit.libs.identity.test_peers import Ticker, ledger_at

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
