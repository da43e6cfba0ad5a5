"""Nodes that are listed and should not be any more: off the list at every registry, whoever admitted them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs.aci.session import verify_session
from libs.identity.certificate import Subject, parse
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import Lease, appraise_peer
from libs.policy.revocation import RevocationKind
from libs.transparency.leaf import Kind
from services.devtee.machine import Machine
from services.registry.leases import Offer
from services.registry.providers import Load, Provider
from services.registry.view import lease_key
from services.registry.withdrawals import Withdrawals
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.registries import Mesh, Registry, until
from tests.fakes.revocations import REASONS, value_of

OFFER = Offer("127.0.0.1:4000", (), Load(0, 0, 4))


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.create(int(time.time()))


@pytest.fixture
def joined(machine: Machine, tmp_path: Path) -> JoinedMesh:
    return JoinedMesh(tmp_path, machine)


@pytest.fixture
def kms(joined: JoinedMesh) -> KmsCore:
    return joined.kms()


@dataclass(frozen=True, slots=True)
class Judging:
    """One registry, the policy that it holds, and its judgement of what is listed."""

    registry: Registry
    keeper: PolicyKeeper
    withdrawals: Withdrawals

    async def listing(self, *listed: Provider) -> None:
        await until(lambda: self.registry.directory.providers() == [*listed])

    def decisions(self) -> list[tuple[str, str | None]]:
        """What is in the log: decisions, and their reasons."""
        return [
            (str(body["decision"]), body.get("reason"))
            for kind, body in self.registry.log.entries
            if kind is Kind.ADMISSION
        ]


def judging(joined: JoinedMesh, kms: KmsCore, registry: Registry, name: str) -> Judging:
    keeper = joined.keeper(name)
    parts = (registry.directory, registry.sessions, registry.leases, registry.admissions)
    return Judging(registry, keeper, Withdrawals(*parts, keeper, lambda: kms.ca.spki))


def node(joined: JoinedMesh, kms: KmsCore, instance: str = "1") -> Lease:
    """A node with real evidence, as any registry appraised it."""
    key = ec.generate_private_key(ec.SECP256R1())
    evidence = joined.evidence("node", kms.challenges.issue("certificate"), key, claims={"models": []})
    subject = Subject(TRUST_DOMAIN, "node", instance, evidence.digest)
    certificate = parse(kms.ca.issue_svid(subject, key.public_key(), time.time()))
    return appraise_peer(certificate, evidence.document, kms.policy.current, kms.ca.spki, time.time())


@pytest.fixture
async def two(mesh: Mesh, joined: JoinedMesh, kms: KmsCore) -> AsyncIterator[tuple[Judging, Judging]]:
    mesh.now = time.time()
    async with mesh.registry() as first, mesh.registry() as second:
        yield judging(joined, kms, first, "first"), judging(joined, kms, second, "second")


async def test_a_node_that_policy_admits_stays(joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]) -> None:
    first, second = two
    listed = await first.registry.leases.register(node(joined, kms), OFFER)
    for one in two:
        await one.listing(listed)
        await one.withdrawals.judge()
        await one.listing(listed)
    assert first.decisions() == [("admitted", None)]
    assert second.decisions() == []


@pytest.mark.parametrize("kind", list(REASONS), ids=lambda kind: kind.value)
async def test_what_operators_revoke_leaves_the_list_at_a_registry_that_never_saw_it(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging], kind: RevocationKind
) -> None:
    first, second = two
    lease = node(joined, kms)
    listed = await first.registry.leases.register(lease, OFFER)
    await second.listing(listed)
    await second.withdrawals.judge()
    second.keeper.accept_revocations([joined.revocation(kind, value_of(kind, lease))])
    await second.withdrawals.judge()
    await first.listing()
    assert second.decisions() == [("withdrawn", REASONS[kind])]
    assert first.decisions() == [("admitted", None)]


async def test_a_revoked_key_that_a_lagging_registry_admits_again_is_off_the_list_again(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]
) -> None:
    lagging, ahead = two
    lease = node(joined, kms)
    ahead.keeper.accept_revocations([joined.revocation(RevocationKind.NODE, lease.certificate.spiffe_id)])
    for _ in range(2):
        listed = await lagging.registry.leases.register(lease, OFFER)
        await ahead.listing(listed)
        await ahead.withdrawals.judge()
        await lagging.listing()


async def test_a_version_without_its_measurement_takes_a_node_off_the_list(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]
) -> None:
    first, _ = two
    listed = await first.registry.leases.register(node(joined, kms), OFFER)
    await first.listing(listed)
    first.keeper.accept(joined.successor(first.keeper.current, roles=joined.without("node")))
    await first.withdrawals.judge()
    await first.listing()


async def test_a_withdrawal_that_finds_the_outbox_full_is_on_record_once_there_is_room(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]
) -> None:
    first, _ = two
    lease = node(joined, kms)
    await first.listing(await first.registry.leases.register(lease, OFFER))
    first.keeper.accept_revocations([joined.revocation(RevocationKind.NODE, value_of(RevocationKind.NODE, lease))])
    first.registry.log.full = True
    await first.withdrawals.judge()
    await first.listing()  # What is not on record yet is off the list all the same.
    assert first.decisions() == [("admitted", None)]
    first.registry.log.full = False
    for _ in range(2):
        await first.withdrawals.judge()
        assert first.decisions() == [("admitted", None), ("withdrawn", "NODE_REVOKED")]


async def test_a_key_that_is_allowed_again_after_it_was_withdrawn_is_admitted_on_record(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]
) -> None:
    """Each admission stands on a session that says the version of its time, so that it can be repeated."""
    first, _ = two
    keeper, lease = first.keeper, node(joined, kms)
    listed = await first.registry.leases.register(lease, OFFER)
    await first.listing(listed)
    keeper.accept(joined.successor(keeper.current, roles=joined.without("node")))
    await first.withdrawals.judge()
    await first.listing()
    keeper.accept(joined.successor(keeper.current, roles=joined.draft["roles"]))
    now = appraise_peer(lease.certificate, lease.evidence.document, keeper.current, kms.ca.spki, time.time())
    again = await first.registry.leases.register(now, OFFER)
    await first.listing(again)
    await first.withdrawals.judge()
    await first.listing(again)
    assert first.decisions() == [("admitted", None), ("withdrawn", "MEASUREMENT_NOT_ALLOWED"), ("admitted", None)]
    sealed = await first.registry.sessions.get(again.session_id)
    assert sealed is not None
    assert verify_session(sealed, again.session_id).extra["policy_version"] == keeper.current.version


async def test_a_key_that_is_withdrawn_and_admitted_again_under_one_version_is_admitted_on_record(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]
) -> None:
    """A registry that is behind admits what another one has withdrawn: the log shows that."""
    behind, ahead = two
    lease = node(joined, kms)
    ahead.keeper.accept_revocations([joined.revocation(RevocationKind.NODE, lease.certificate.spiffe_id)])
    for _ in range(2):
        await ahead.listing(await behind.registry.leases.register(lease, OFFER))
        await ahead.withdrawals.judge()
        await behind.listing()
    assert behind.decisions() == [("admitted", None)] * 2
    assert ahead.decisions() == [("withdrawn", "NODE_REVOKED")] * 2


async def test_a_registry_that_is_behind_does_not_withdraw_what_a_later_version_admits(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]
) -> None:
    """Its own version lists no node at all. What was revoked there is revoked, whoever is behind."""
    first, second = two
    lease = node(joined, kms)
    joined.seed = joined.sign({**joined.draft, "roles": joined.without("node")})
    behind = judging(joined, kms, second.registry, "behind")
    later = replace(lease, appraisal=replace(lease.appraisal, policy_version=behind.keeper.current.version + 1))
    listed = await first.registry.leases.register(later, OFFER)
    await behind.listing(listed)
    await behind.withdrawals.judge()
    assert behind.decisions() == []
    await first.listing(listed)
    behind.keeper.accept_revocations([joined.revocation(RevocationKind.NODE, listed.spiffe_id)])
    await behind.withdrawals.judge()
    await first.listing()


async def test_a_node_that_renews_while_it_is_judged_is_withdrawn_all_the_same(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]
) -> None:
    first, _ = two
    lease = node(joined, kms)
    listed = await first.registry.leases.register(lease, OFFER)
    await first.listing(listed)
    await first.registry.leases.renew(lease, Load(1, 0, 4), draining=False)
    assert await first.registry.leases.withdraw(listed)
    await first.listing()


async def test_another_key_under_the_same_name_is_not_withdrawn_with_the_one_before(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]
) -> None:
    first, _ = two
    before = await first.registry.leases.register(node(joined, kms), OFFER)
    after = await first.registry.leases.register(node(joined, kms), OFFER)
    assert not await first.registry.leases.withdraw(before)
    await first.listing(after)


async def test_a_record_whose_session_is_gone_or_of_another_key_is_withdrawn(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]
) -> None:
    """What the broker may plant: nothing shows that such a node was ever admitted."""
    first, second = two
    listed = await first.registry.leases.register(node(joined, kms), OFFER)
    for number, planted in enumerate(
        (replace(listed, session_id="ff" * 32), replace(listed, spki_sha256="ee" * 32)), start=2
    ):
        other = replace(planted, spiffe_id=f"spiffe://{TRUST_DOMAIN}/node/{number}")
        await first.registry.store.providers.put(lease_key(other.spiffe_id), other.encode(), 0)
        await second.listing(listed, other)
        await second.withdrawals.judge()
        await second.listing(listed)
    assert [reason for _, reason in second.decisions()] == ["SESSION_LOST", "EVIDENCE_MISMATCH"]


async def test_policy_that_moves_is_acted_on_without_being_asked(
    joined: JoinedMesh, kms: KmsCore, two: tuple[Judging, Judging]
) -> None:
    first, _ = two
    lease = node(joined, kms)
    listed = await first.registry.leases.register(lease, OFFER)
    await first.listing(listed)
    keeping = asyncio.create_task(first.withdrawals.keep())
    first.keeper.accept_revocations([joined.revocation(RevocationKind.KEY, lease.certificate.spki_sha256.hex())])
    await first.listing()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
