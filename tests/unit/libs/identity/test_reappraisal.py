"""Judging everyone again: nothing starts on an older judgement, the named end first, and the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from libs.errors import MeshError
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import EvidenceRequired, Leases
from libs.identity.member import Member
from libs.identity.reappraisal import reappraise
from libs.identity.revoked import verify_findings_not_revoked
from libs.policy.revocation import RevocationKind
from libs.tee.nvidia.claims import GpuDevice, SwitchDevice
from libs.tee.nvidia.evidence import GpuVerdict
from tests.fakes.certified_router import CertifiedRouter
from tests.fakes.joined_mesh import Clock, JoinedMesh, KmsCore
from tests.fakes.revocations import REASONS, value_of
from tests.unit.libs.identity.test_peers import Ticker, ledger_at, refusal

MANY = 12


class Believed:
    """Many routers that hold a lease, and a policy that moves."""

    def __init__(self, mesh: JoinedMesh, kms: KmsCore) -> None:
        self.mesh, self.kms, self.clock = mesh, kms, Clock()
        self.keeper: PolicyKeeper = mesh.keeper("server", clock=self.clock)
        self.leases = Leases(self.keeper, lambda: kms.ca.spki, self.clock)
        self.routers = [CertifiedRouter(mesh, kms, self.clock, str(number)) for number in range(MANY)]
        for router in self.routers:
            self.leases.open(router.certificate, router.evidence.document)

    @property
    def keys(self) -> list[bytes]:
        return [key for key, _ in self.leases.live()]

    @property
    def judged(self) -> int:
        """How many were judged under the policy in force."""
        return sum(lease.policy is self.keeper.current for _, lease in self.leases.live())

    def key(self, number: int) -> bytes:
        return self.routers[number].certificate.spki_sha256

    def later(self, instance: str) -> CertifiedRouter:
        """A router whose certificate ends after those of all the others."""
        self.clock.now += 60
        return CertifiedRouter(self.mesh, self.kms, self.clock, instance)

    def publish(self, **changes: Any) -> None:
        self.keeper.accept(self.mesh.successor(self.keeper.current, **changes))

    def revoke(self, kind: RevocationKind, value: str) -> None:
        self.keeper.accept_revocations([self.mesh.revocation(kind, value)])

    def revoke_router(self, number: int) -> None:
        self.revoke(RevocationKind.NODE, self.routers[number].certificate.spiffe_id)

    def begin(self) -> asyncio.Task[None]:
        return asyncio.create_task(reappraise(self.keeper, lambda: (self.leases,)))

    async def running_on(self, key: bytes) -> asyncio.Task[None]:
        started = asyncio.Event()

        async def call() -> None:
            with self.leases.hold(key):
                started.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(call())
        await started.wait()
        return task


@pytest.fixture
def believed(mesh: JoinedMesh, kms: KmsCore) -> Believed:
    return Believed(mesh, kms)


def held(believed: Believed) -> None:
    with believed.leases.hold(believed.key(0)):
        pass


def extended(believed: Believed) -> None:
    following = believed.routers[0]
    believed.leases.extend(believed.key(0), following.certificate, following.evidence.document)


USES: dict[str, Callable[[Believed], object]] = {
    "call": lambda believed: believed.leases.of(believed.key(0)),
    "task": held,
    "successor": extended,
}


@pytest.mark.parametrize("use", USES)
async def test_a_lease_that_policy_has_overtaken_is_judged_before_it_is_used(believed: Believed, use: str) -> None:
    running = await believed.running_on(believed.key(0))
    USES[use](believed)
    believed.publish(roles=believed.mesh.without("router"))
    with pytest.raises(EvidenceRequired):
        USES[use](believed)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert believed.keys == [believed.key(number) for number in range(1, MANY)]  # Nobody else's turn has come.


def test_a_lease_that_policy_has_overtaken_keeps_nothing_alive(believed: Believed) -> None:
    assert believed.leases.ends_at(believed.key(0)) > 0
    believed.publish(roles=believed.mesh.without("router"))
    assert believed.leases.ends_at(believed.key(0)) == 0


def test_a_lease_that_policy_has_overtaken_is_as_long_as_the_new_one_has_it(believed: Believed) -> None:
    """Also for whoever presents the same evidence again: the longer lease of before does not count."""
    router = believed.routers[0]
    believed.publish(evidence_max_age_seconds=600)
    lease = believed.leases.open(router.certificate, router.evidence.document)
    assert lease.until == router.evidence.challenge.issued_at + 600
    assert lease.policy is believed.keeper.current


async def test_a_channel_to_a_peer_that_policy_has_overtaken_is_not_given_out(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (_, target), mesh.member("router", kms) as router:
        peer = router.peer("ledger", target)
        link = await peer.link(10)
        router.policy.accept(mesh.successor(router.policy.current, roles=mesh.without("ledger")))
        # Nothing has run since, so its turn has not come.
        assert peer.is_live(link)
        assert await refusal(peer) == "MEASUREMENT_NOT_ALLOWED"
        assert not peer.is_live(link)


async def test_a_link_that_is_preferred_is_judged_first_too(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (_, target), mesh.member("router", kms) as router:
        peer = router.peer("ledger", target)
        link = await peer.link(10)
        router.policy.accept(mesh.successor(router.policy.current))
        assert await peer.link(10, preferred=link) is link
        assert link.lease.policy is router.policy.current
        router.policy.accept(mesh.successor(router.policy.current, roles=mesh.without("ledger")))
        with pytest.raises(MeshError) as error:
            await peer.link(10, preferred=link)
        assert error.value.reason == "MEASUREMENT_NOT_ALLOWED"


@pytest.mark.parametrize("kind", REASONS)
async def test_whom_a_revocation_names_ends_without_being_judged(believed: Believed, kind: RevocationKind) -> None:
    running = await believed.running_on(believed.key(MANY - 1))
    lease = believed.leases.of(believed.key(MANY - 1))
    believed.revoke(kind, value_of(kind, lease))
    believed.leases.end_named()
    assert believed.key(MANY - 1) not in believed.keys
    assert believed.judged == 0
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("revoked", ["shown", "following"])
def test_either_key_of_a_lease_that_was_handed_over_can_be_named(believed: Believed, revoked: str) -> None:
    key = believed.key(0)
    following = believed.later("0")
    lease = believed.leases.extend(key, following.certificate, following.evidence.document)
    assert lease.certificate == following.certificate
    named = {"shown": key, "following": following.certificate.spki_sha256}[revoked]
    believed.revoke(RevocationKind.KEY, named.hex())
    believed.leases.end_named()
    assert key not in believed.keys


async def test_a_peer_that_a_revocation_names_is_dropped_without_being_judged(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target), mesh.member("router", kms) as router:
        peer = router.peer("ledger", target)
        link = await peer.link(10)
        before = link.lease
        router.policy.accept_revocations([mesh.revocation(RevocationKind.NODE, ledger.spiffe_id)])
        peer.end_named()
        assert (peer.is_live(link), peer.refusal) == (False, "NODE_REVOKED")
        assert link.lease is before


@pytest.mark.parametrize("ueid", ["31", "47"])
def test_a_gpu_or_switch_that_was_found_is_missed_when_it_is_revoked(believed: Believed, ueid: str) -> None:
    found = believed.leases.of(believed.key(0)).appraisal
    gpu, switch = GpuDevice("GPU-0", "31", "model", "driver", "vbios"), SwitchDevice("SWITCH-0", "47", "model", "bios")
    appraisal = replace(found, gpu=GpuVerdict("issuer", (gpu,), (switch,), True, found.valid_until))
    believed.revoke(RevocationKind.DEVICE, "53")
    verify_findings_not_revoked(appraisal, believed.keeper.current)
    believed.revoke(RevocationKind.DEVICE, ueid)
    with pytest.raises(MeshError) as error:
        verify_findings_not_revoked(appraisal, believed.keeper.current)
    assert error.value.reason == "GPU_DEVICE_REVOKED"


async def test_all_who_are_named_end_before_anybody_is_judged(believed: Believed) -> None:
    believed.revoke_router(MANY - 1)
    believed.revoke_router(MANY - 2)
    judging = believed.begin()
    await asyncio.sleep(0)
    assert believed.keys == [believed.key(number) for number in range(MANY - 2)]
    assert believed.judged <= 1
    await judging
    assert believed.judged == MANY - 2


async def test_the_loop_goes_on_between_any_two_judgements(believed: Believed) -> None:
    believed.publish()
    judging = believed.begin()
    judged = []
    while not judging.done():
        judged.append(believed.judged)
        await asyncio.sleep(0)
    assert [later - earlier for earlier, later in pairwise(judged)] == [1] * (len(judged) - 1)
    assert judged[-1] == MANY


async def test_a_policy_that_changes_meanwhile_ends_its_named_first_and_is_what_everybody_is_judged_by(
    believed: Believed,
) -> None:
    believed.publish()
    judging = believed.begin()
    for _ in range(MANY // 2):
        await asyncio.sleep(0)
    assert believed.judged == MANY // 2
    believed.revoke_router(MANY - 1)
    believed.publish()
    await asyncio.sleep(0)
    assert believed.key(MANY - 1) not in believed.keys
    assert believed.judged <= 1
    await judging
    assert believed.keys == [believed.key(number) for number in range(MANY - 1)]
    assert believed.judged == MANY - 1


async def test_the_last_ones_turn_comes_however_often_policy_changes(believed: Believed) -> None:
    first = believed.keeper.current
    believed.publish()
    judging = believed.begin()
    for tenant in range(MANY):
        believed.revoke(RevocationKind.TENANT, f"{tenant:032x}")
        await asyncio.sleep(0)
    assert not judging.done()
    assert [lease.policy for _, lease in believed.leases.live() if lease.policy is first] == []
    await judging
    assert believed.judged == MANY


async def test_a_member_judges_both_sides_of_its_connections(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with ledger_at(mesh, kms, Ticker()) as (ledger, target), mesh.member("router", kms) as router:
        link = await router.peer("ledger", target).link(10)
        for member in (router, ledger):
            await moved_on(mesh, member)
        key = router.identity.current.certificate.spki_sha256
        assert [lease.policy for found, lease in ledger.leases.live() if found == key] == [ledger.policy.current]
        assert link.lease.policy is router.policy.current
        assert not link.is_overtaken


async def moved_on(mesh: JoinedMesh, member: Member) -> None:
    member.policy.accept(mesh.successor(member.policy.current))
    await member.reappraise()
