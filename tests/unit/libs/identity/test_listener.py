"""A listener exchanges its certificate when there is another one, and not otherwise."""

from __future__ import annotations

from libs.identity.listener import NewestCertificate
from tests.fakes.joined_mesh import JoinedMesh, KmsCore


async def test_a_certificate_is_exchanged_once_for_each_renewal(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with mesh.member("router", kms) as member:
        newest = NewestCertificate(member.identity)
        assert newest() is None
        for _ in range(2):
            await member.identity.obtain()
            assert newest() is not None
            assert newest() is None
