"""The statement follows what is in force, and whoever watches hears of it, or that nothing is new."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from libs.policy.revocation import RevocationKind
from libs.policy.statement import Statement, verify_statement
from services.kms.statements import SignedStatement, StatementSource
from tests.fakes.joined_mesh import JoinedMesh, KmsCore


def read(signed: SignedStatement | None, kms: KmsCore) -> Statement:
    assert signed is not None
    return verify_statement(signed.statement, signed.signature, kms.ca.spki)


async def test_a_watch_that_has_nothing_new_to_tell_gives_a_sign_of_life(kms: KmsCore) -> None:
    source = StatementSource(kms.ca, kms.policy)
    async with aclosing(source.watch(heartbeat_seconds=0.01)) as told:
        assert read(await anext(told), kms).version == 1
        assert await anext(told) is None
        assert await anext(told) is None


async def test_who_comes_later_hears_the_newest_and_only_what_follows(mesh: JoinedMesh, kms: KmsCore) -> None:
    source = StatementSource(kms.ca, kms.policy)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks, aclosing(source.watch()) as first:
        stating = tasks.create_task(source.keep(3600))
        assert read(await anext(first), kms).revocation == 0
        waiting = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0)  # Both wait now.
        for number in (1, 2):
            kms.policy.accept_revocations([mesh.revocation(RevocationKind.TENANT, f"{number:032x}")])
            assert read(await waiting, kms).revocation == number
            waiting = asyncio.ensure_future(anext(first))
            await asyncio.sleep(0)
        async with aclosing(source.watch(heartbeat_seconds=0.01)) as second:
            assert read(await anext(second), kms).revocation == 2
            assert await anext(second) is None
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        stating.cancel()
