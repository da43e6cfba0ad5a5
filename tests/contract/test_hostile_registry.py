"""A registry that attacks policy: every service that relies on policy refuses by itself, and gets it from the KMS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs
from teemesh.kms.v1.kms_pb2 import GetPolicyRequest, GetPolicyResponse

from libs.identity.member import Member
from libs.identity.peers import PeerUnavailable
from libs.identity.policy_sources import RegistryPolicies, stated_chain
from libs.identity.statements import KmsStatements, follow_statements, take_statement
from libs.policy.document import read
from libs.policy.signatures import SignedPolicy, parse_signed, sign
from libs.policy.statement import Statement
from libs.rpc.calls import Context
from services.kms.servicer import KmsServicer
from tests.fakes.hostile_registry import policy_registry
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.running_kms import running_kms

PATIENCE_SECONDS = 30.0
CLAIMS: Mapping[str, Mapping[str, Any]] = {"router": {}, "node": {"models": []}, "attestation": {}}
"""The services that know a registry, and what they must claim; all others take policy from the KMS alone."""

LAST = 3
Bend = Callable[[JoinedMesh, KmsCore, int], bytes]


def _changed(mesh: JoinedMesh, kms: KmsCore, version: int, **changes: Any) -> dict[str, Any]:
    """The version that the KMS has, with other members."""
    return {**mesh.draft, "version": version, "previous": _previous(kms, version), **changes}


def _previous(kms: KmsCore, version: int) -> str:
    return parse_signed(kms.policy.signed(version)).policy.previous.hex()


def forged(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    stranger = Ed25519PrivateKey.generate()
    policy = read(_changed(mesh, kms, version))
    return SignedPolicy(policy, (sign(policy.document, stranger), sign(policy.document, mesh.operators[0]))).document


def forged_for_operators_of_its_own(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    own = [Ed25519PrivateKey.generate() for _ in range(2)]
    keys = [key.public_key().public_bytes_raw().hex() for key in own]
    draft = _changed(mesh, kms, version, operators={"keys": keys, "threshold": 2})
    policy = read({**draft, "tenant_admin_key": keys[0]})
    return SignedPolicy(policy, tuple(sign(policy.document, key) for key in own)).document


def altered(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return kms.policy.signed(version).replace(b'"UpToDate"', b'"OutOfDate"')


def replayed(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return mesh.seed


def older(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return kms.policy.signed(version - 1)


def newer(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return kms.policy.signed(LAST)


def expired(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    if version < LAST:
        return kms.policy.signed(version)
    now = int(time.time())
    return mesh.sign(_changed(mesh, kms, version, not_before=now - 7200, not_after=now - 3600))


def under_signed(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return mesh.sign(_changed(mesh, kms, version), signers=(0,))


def signed_twice_by_one(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return mesh.sign(_changed(mesh, kms, version), signers=(0, 0))


def wrongly_chained(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return mesh.sign(_changed(mesh, kms, version, previous="ab" * 32))


def of_another_mesh(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return mesh.sign(_changed(mesh, kms, version, trust_domain="other.test"))


def never_published(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    """Genuine in everything, and withdrawn by the operators before they published another in its place."""
    return kms.policy.signed(version) if version < LAST else never_published_from_the_start(mesh, kms, version)


def never_published_from_the_start(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return mesh.sign(_changed(mesh, kms, version))


def nothing(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return b""


def garbage(mesh: JoinedMesh, kms: KmsCore, version: int) -> bytes:
    return b"\xff" * 1000


ATTACKS: Mapping[Bend, str] = {
    forged: "POLICY_SIGNATURES_INSUFFICIENT",
    forged_for_operators_of_its_own: "POLICY_SIGNATURES_INSUFFICIENT",
    altered: "POLICY_SIGNATURES_INSUFFICIENT",
    replayed: "POLICY_VERSION_NOT_NEXT",
    older: "POLICY_VERSION_NOT_NEXT",
    newer: "POLICY_VERSION_NOT_NEXT",
    expired: "POLICY_NOT_STATED",
    under_signed: "POLICY_SIGNATURES_INSUFFICIENT",
    signed_twice_by_one: "POLICY_MALFORMED",
    wrongly_chained: "POLICY_VERSION_NOT_NEXT",
    of_another_mesh: "POLICY_VERSION_NOT_NEXT",
    never_published: "POLICY_NOT_STATED",
    never_published_from_the_start: "POLICY_VERSION_NOT_NEXT",
    nothing: "POLICY_MALFORMED",
    garbage: "POLICY_MALFORMED",
}
"""And why it is refused."""


def publish(mesh: JoinedMesh, kms: KmsCore) -> None:
    """Put versions 2 and 3 in force."""
    for age in (3000, 3600):
        kms.policy.accept(mesh.successor(kms.policy.current, challenge_max_age_seconds=age))


def statement_of(kms: KmsCore) -> Statement:
    known, current = kms.policy.revocations, kms.policy.current
    return Statement(current.version, current.digest, known.number, int(time.time() * 1000), known.digest)


class StatingOnly:
    """A KMS that states, and hands nothing out."""

    def watch(self) -> AsyncGenerator[Statement, None]:
        raise PeerUnavailable("not here")

    async def policy(self, version: int) -> bytes:
        raise PeerUnavailable("not here")

    async def revocations(self) -> Sequence[bytes]:
        return ()


class CountingKms(KmsServicer):
    asked = 0

    async def GetPolicy(self, request: GetPolicyRequest, context: Context) -> GetPolicyResponse:  # noqa: N802
        type(self).asked += 1
        return await super().GetPolicy(request, context)


async def brought_up_to_date(member: Member, kms_target: str, registry_target: str) -> None:
    statements = KmsStatements(member.peer("kms", kms_target), member.identity)
    registry = RegistryPolicies(member.any_peer("registry", [registry_target]))
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow_statements(statements, member.policy, 0.05, registry))
        while member.policy.current.version < LAST:
            await member.policy.advanced()
        following.cancel()


@pytest.mark.parametrize("role", CLAIMS)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_no_service_takes_what_a_registry_made_up(
    mesh: JoinedMesh, kms: KmsCore, role: str, attack: Bend
) -> None:
    publish(mesh, kms)

    async def hand_out(version: int) -> bytes:
        return attack(mesh, kms, version)

    async with (
        policy_registry(mesh, kms, hand_out) as (registry, target),
        mesh.member(role, kms, claims=CLAIMS[role]) as member,
    ):
        policies = RegistryPolicies(member.any_peer("registry", [target]))
        with capture_logs() as lines, pytest.raises(PeerUnavailable):
            await take_statement(statement_of(kms), StatingOnly(), member.policy, policies)
        assert registry.asked
        assert [line["reason"] for line in lines if line["event"] == "no policy from the registry"] == [ATTACKS[attack]]
        assert member.policy.current.version == 1
        assert not (member.settings.state_dir / "policy" / "2.json").exists()


@pytest.mark.parametrize("role", CLAIMS)
@pytest.mark.parametrize("attack", [forged, replayed, never_published], ids=lambda attack: attack.__name__)
async def test_a_service_gets_the_policy_in_force_from_the_kms_instead(
    mesh: JoinedMesh, kms: KmsCore, role: str, attack: Bend
) -> None:
    publish(mesh, kms)

    async def hand_out(version: int) -> bytes:
        return attack(mesh, kms, version)

    async with (
        running_kms(mesh, kms) as running,
        policy_registry(mesh, kms, hand_out) as (registry, target),
        mesh.member(role, kms, claims=CLAIMS[role]) as member,
    ):
        await brought_up_to_date(member, running.target, target)
        assert registry.asked
        assert member.policy.current.digest == kms.policy.current.digest


async def test_an_honest_registry_spares_the_kms(mesh: JoinedMesh, kms: KmsCore) -> None:
    publish(mesh, kms)

    async def hand_out(version: int) -> bytes:
        return kms.policy.signed(version)

    CountingKms.asked = 0
    async with (
        running_kms(mesh, kms, CountingKms) as running,
        policy_registry(mesh, kms, hand_out) as (registry, target),
        mesh.member("router", kms) as member,
    ):
        await brought_up_to_date(member, running.target, target)
        assert member.policy.current.digest == kms.policy.current.digest
        assert (registry.asked, CountingKms.asked) == ([2, 3], 0)


class Dripping:
    """Gives one version and then never another."""

    def __init__(self, kms: KmsCore) -> None:
        self._kms = kms

    async def policy(self, version: int) -> bytes:
        if version == LAST:
            await asyncio.Event().wait()
        return self._kms.policy.signed(version)


class Handing:
    """A KMS that hands out what it has."""

    def __init__(self, kms: KmsCore) -> None:
        self._kms = kms

    async def policy(self, version: int) -> bytes:
        return self._kms.policy.signed(version)


async def test_all_versions_together_have_the_time_of_one_call(mesh: JoinedMesh, kms: KmsCore) -> None:
    current = kms.policy.current
    publish(mesh, kms)
    with capture_logs() as lines:
        async with asyncio.timeout(PATIENCE_SECONDS):
            chain = await stated_chain(Handing(kms), Dripping(kms), current, statement_of(kms), registry_seconds=0.05)
    assert chain == [kms.policy.signed(2), kms.policy.signed(LAST)]
    assert [line["reason"] for line in lines] == ["POLICY_SOURCE_SILENT"]


async def test_a_registry_that_is_away_is_no_reason_to_be_behind(mesh: JoinedMesh, kms: KmsCore) -> None:
    publish(mesh, kms)
    async with running_kms(mesh, kms) as running, mesh.member("router", kms) as member:
        await brought_up_to_date(member, running.target, "127.0.0.1:9")
        assert member.policy.current.digest == kms.policy.current.digest
