"""Policy that operators did not sign, or not as the next one: each service refuses it on its own, whoever hands it out.

Here it is a KMS of the right code and the right CA that lies to those who joined the mesh through it: it hands out what
it made up, and states its digest. What a registry that lies achieves is in `test_hostile_registry`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs
from teemesh.kms.v1 import kms_pb2 as pb

from libs.errors import MeshError
from libs.identity.freshness import PolicyStale
from libs.identity.member import Member, join
from libs.policy.signatures import parse_signed
from libs.policy.statement import Statement, sign_statement
from libs.policy.succession import PolicyNotValidNow
from libs.rpc.calls import Context
from services.kms.servicer import KmsServicer
from tests.contract.test_hostile_registry import (
    ATTACKS,
    LAST,
    PATIENCE_SECONDS,
    Bend,
    expired,
    never_published,
    never_published_from_the_start,
    newer,
    older,
    publish,
)
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.kms_callers import operator
from tests.fakes.refusals import refusal
from tests.fakes.registries import until
from tests.fakes.running_kms import running_kms

CLAIMS: Mapping[str, Mapping[str, Any]] = {
    "attestation": {},
    "broker": {},
    "ledger": {},
    "node": {"models": []},
    "registry": {},
    "router": {},
}
"""Every service that takes its policy from the KMS, and what it must claim."""
REFUSED = {
    attack: reason
    for attack, reason in ATTACKS.items()
    # What enough operators signed comes into force when the KMS says so: the order of versions is the KMS's.
    if attack not in (expired, never_published, never_published_from_the_start)
}
Line = MutableMapping[str, Any]


def genuine(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return kms.policy.signed(version)


class Lies:
    """What a KMS hands out: something else to each watch, and the last for good."""

    def __init__(self, mesh: JoinedMesh, kms: KmsCore, attacks: Iterable[Bend]) -> None:
        self._mesh = mesh
        self._kms = kms
        self._left = iter(attacks)
        self._now: Bend = genuine
        self._told: dict[tuple[Bend, int], bytes] = {}
        self.ended = asyncio.Event()
        self.repented = asyncio.Event()
        """Set by a test: from then on the truth."""

    def policy(self, version: int) -> bytes:
        """One lie is one document, also if it has the time in it and the next second has begun."""
        which = self._now, version
        if which not in self._told:
            self._told[which] = self._now(self._mesh, self._kms, version)
        return self._told[which]

    async def statement(self) -> Statement:
        """The next lie is told, and its digest stated."""
        following = next(self._left, None)
        if following is None:
            self.ended.set()
            await self.repented.wait()
        self._now = following or genuine
        known = self._kms.policy.revocations
        return Statement(LAST, self._digest(), known.number, int(time.time() * 1000), known.digest)

    def _digest(self) -> bytes:
        try:
            return parse_signed(self.policy(LAST)).policy.digest
        except MeshError:
            return bytes(32)


class LyingKms(KmsServicer):
    def __init__(self, *parts: Any, kms: KmsCore, lies: Lies) -> None:
        super().__init__(*parts)
        self._core = kms
        self._lies = lies

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.GetPolicyResponse:  # noqa: N802
        return pb.GetPolicyResponse(signed_policy=self._lies.policy(request.version))

    async def WatchStatements(  # noqa: N802
        self, request: pb.WatchStatementsRequest, context: Context
    ) -> AsyncIterator[pb.WatchStatementsResponse]:
        statement = await self._lies.statement()
        signature = sign_statement(statement, self._core.ca.key)
        yield pb.WatchStatementsResponse(stated=pb.Stated(statement=statement.document, signature=signature))
        await asyncio.Event().wait()


@asynccontextmanager
async def joined(mesh: JoinedMesh, kms: KmsCore, role: str, lies: Lies) -> AsyncIterator[tuple[Member, list[Line]]]:
    """A service that joins through a KMS that lies, wired as every service is; and what it logs."""
    publish(mesh, kms)
    make = partial(LyingKms, kms=kms, lies=lies)
    async with running_kms(mesh, kms, make) as running, mesh.guest(mesh.tds[role]) as socket:
        settings = mesh.settings(role, "7", socket, kms=(running.target,), kms_bootstrap=(running.bootstrap,))
        with capture_logs() as lines:
            async with join(settings, role, CLAIMS[role], collateral=mesh.collateral) as member:
                yield member, lines


@pytest.mark.parametrize("role", CLAIMS)
async def test_a_service_takes_nothing_that_a_kms_made_up_and_does_not_work_until_it_has_what_operators_signed(
    mesh: JoinedMesh, kms: KmsCore, role: str
) -> None:
    lies = Lies(mesh, kms, REFUSED)
    async with joined(mesh, kms, role, lies) as (member, lines):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await lies.ended.wait()
        told = [line["reason"] for line in lines if line["event"] == "no policy statement"]
        assert list(zip(map(_name, REFUSED), told, strict=True)) == [(_name(a), why) for a, why in REFUSED.items()]
        assert member.policy.current.version == 1
        assert not (member.settings.state_dir / "policy" / "2.json").exists()
        with pytest.raises(PolicyStale):
            member.policy.require_fresh()
        lies.repented.set()
        await until(lambda: member.policy.current.version == LAST)
        await until(lambda: _is_fresh(member))
        assert member.policy.current.digest == kms.policy.current.digest


@pytest.mark.parametrize("role", CLAIMS)
async def test_no_service_works_under_a_policy_that_expired_whatever_is_stated(
    mesh: JoinedMesh, kms: KmsCore, role: str
) -> None:
    async with joined(mesh, kms, role, Lies(mesh, kms, [expired])) as (member, _):
        await until(lambda: member.policy.current.version == LAST)
        with pytest.raises(PolicyNotValidNow):
            member.policy.require_fresh()


async def test_the_kms_itself_publishes_only_what_operators_signed_as_the_next(mesh: JoinedMesh, kms: KmsCore) -> None:
    """An operator may call; a policy counts for who signed it all the same."""
    ahead = mesh.kms("ahead")
    publish(mesh, ahead)
    kms.policy.accept(ahead.policy.signed(2))
    async with running_kms(mesh, kms) as running, operator(running) as stub:
        for attack, why in {**REFUSED, expired: "POLICY_NOT_VALID_NOW"}.items():
            if attack in (older, newer):
                continue  # Here they are the one in force, which may be published again, and the next one.
            request = pb.PublishPolicyRequest(signed_policy=attack(mesh, ahead, LAST))
            assert (_name(attack), await refusal(stub.PublishPolicy(request, timeout=10))) == (_name(attack), why)
        assert (kms.policy.current.version, running.log.outbox) == (2, [])
        request = pb.PublishPolicyRequest(signed_policy=ahead.policy.signed(LAST))
        assert (await stub.PublishPolicy(request, timeout=10)).version == LAST


def _name(attack: Bend) -> str:
    return attack.__name__


def _is_fresh(member: Member) -> bool:
    with suppress(PolicyStale):
        return member.policy.require_fresh() is member.policy.current
    return False
