"""The sweep: every live lease is judged under the policy in force now, from the very evidence that it rests on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs.audit.repetition import repeat
from libs.identity.certificate import spki_of, spki_of_certificate
from libs.identity.freshness import PolicyKeeper
from libs.policy.revocation import RevocationKind
from libs.policy.succession import PolicyNotValidNow
from libs.rpc.channel import PeerUnreachable
from libs.tee import evidence as evidences
from libs.tee.appraisal import OwnNonce
from libs.tee.archived import Bundle, Question
from services.attestation.appraisal import Appraisals
from services.attestation.archive import AppraisalUnknown, Archive
from services.attestation.feed import Feed, Told
from services.attestation.nodes import Listed, Shown
from services.attestation.sweep import Sweep
from tests.fakes.joined_mesh import Clock, JoinedMesh, KmsCore, hear

PATIENCE_SECONDS = 20.0


@dataclass(slots=True)
class Fleet:
    """Nodes with leases; each shows the evidence that it has, or is away."""

    mesh: JoinedMesh
    kms: KmsCore
    clock: Clock
    listed: dict[str, Listed] = field(default_factory=dict)
    unsound: dict[str, str] = field(default_factory=dict)
    shown: dict[str, Shown] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    fetches: list[str] = field(default_factory=list)
    changes: asyncio.Event = field(default_factory=asyncio.Event)

    def join(self, name: str, role: str = "node", claims: dict[str, Any] | None = None) -> Listed:
        key = ec.generate_private_key(ec.SECP256R1())
        challenge = self.kms.challenges.issue("evidence")
        claims = {"models": []} if claims is None else claims
        document = self.mesh.evidence(role, challenge, key, claims=claims).document
        spki = spki_of(key.public_key())
        listed = Listed(
            f"spiffe://mesh.test/node/{name}",
            f"127.0.0.1:{len(self.listed) + 1}",
            hashlib.sha256(document).digest(),
            hashlib.sha256(spki).digest(),
        )
        self.listed[listed.spiffe_id] = listed
        self.shown[listed.endpoint] = Shown(spki, document)
        changes, self.changes = self.changes, asyncio.Event()
        changes.set()
        return listed

    async def changed(self) -> None:
        await self.changes.wait()

    async def fetch(self, listed: Listed) -> Shown:
        self.fetches.append(listed.spiffe_id)
        if listed.spiffe_id in self.away:
            raise PeerUnreachable("no answer")
        return self.shown[listed.endpoint]


@dataclass(slots=True)
class Scene:
    fleet: Fleet
    policy: PolicyKeeper
    archive: Archive
    feed: Feed
    sweep: Sweep
    clock: Clock

    def uncovered(self, max_age_seconds: int = 0) -> dict[str, str]:
        return {each.spiffe_id: each.reason for each in self.sweep.coverage(max_age_seconds).uncovered}


@pytest.fixture
async def scene(mesh: JoinedMesh, kms: KmsCore, tmp_path: Path) -> Scene:
    clock = Clock()
    policy = mesh.keeper("attestation", clock=clock)
    fleet = Fleet(mesh, kms, clock)
    archive, feed = Archive(tmp_path / "archive", 1 << 30), Feed(1000)
    await archive.open()
    sweep = Sweep(
        fleet,
        fleet.fetch,
        policy,
        lambda: spki_of_certificate(kms.ca.certificate),
        archive,
        Appraisals(archive, feed),
        clock,
    )
    return Scene(fleet, policy, archive, feed, sweep, clock)


async def told(scene: Scene, count: int, after: int = 1000) -> list[Told]:
    events = scene.feed.follow(after)
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [await anext(events) for _ in range(count)]


async def test_every_live_lease_is_judged_archived_and_told_of(scene: Scene) -> None:
    names = {scene.fleet.join(name).spiffe_id for name in ("one", "two")}
    assert set(scene.uncovered().values()) == {"NOT_APPRAISED_YET"}
    await scene.sweep.sweep()
    assert scene.uncovered() == {}
    assert scene.sweep.coverage(0).share == 1.0
    for event in await told(scene, 2):
        assert event.made is not None
        assert event.made.spiffe_id in names
        assert event.made.refusal is None
        data = await scene.archive.bundle(event.made.record_digest)
        assert repeat(data) == Bundle.decode(data).record.encode()


async def test_evidence_that_is_refused_is_archived_and_told_of_too(scene: Scene) -> None:
    listed = scene.fleet.join("one", role="router")
    await scene.sweep.sweep()
    assert scene.uncovered() == {listed.spiffe_id: "MEASUREMENT_NOT_ALLOWED"}
    (event,) = await told(scene, 1)
    assert event.made is not None
    assert event.made.refusal == "MEASUREMENT_NOT_ALLOWED"
    data = await scene.archive.bundle(event.made.record_digest)
    assert repeat(data) == Bundle.decode(data).record.encode()


async def records_told(scene: Scene, count: int) -> list[bytes]:
    return [event.made.record_digest for event in await told(scene, count) if event.made is not None]


async def test_a_node_about_which_nothing_changed_leaves_one_record(scene: Scene, mesh: JoinedMesh) -> None:
    scene.fleet.join("one")
    for _ in range(3):
        await scene.sweep.sweep()
        scene.clock.now += 1
    first, *later = await records_told(scene, 3)
    assert later == [first, first]
    scene.policy.accept(mesh.successor(scene.policy.current))
    hear(scene.policy, scene.clock.now)
    await scene.sweep.sweep()
    second = (await records_told(scene, 4))[-1]
    assert second != first
    scene.policy.accept(mesh.successor(scene.policy.current, roles=mesh.without("node")))
    hear(scene.policy, scene.clock.now)
    await scene.sweep.sweep()
    third = (await records_told(scene, 5))[-1]
    assert third not in (first, second)
    assert [repeat(data) for data in [await scene.archive.bundle(digest) for digest in (first, second, third)]]


async def test_another_outcome_under_the_same_policy_is_recorded(scene: Scene) -> None:
    """Time alone may change it; here it is another role's rules."""
    listed = scene.fleet.join("one")
    document, policy = scene.fleet.shown[listed.endpoint].document, scene.policy.current
    own = Question("node", int(scene.clock.now), None, OwnNonce(evidences.parse(document).challenge.nonce))
    appraisals = Appraisals(scene.archive, scene.feed)
    _, accepted = await appraisals.make(document, policy, own)
    _, refused = await appraisals.make(document, policy, replace(own, role="ledger"), last=accepted)
    _, again = await appraisals.make(document, policy, replace(own, now=own.now + 1), last=accepted)
    assert accepted is not None
    assert refused is not None
    assert (accepted.refusal, refused.refusal) == (None, "MEASUREMENT_NOT_ALLOWED")
    assert again == accepted != refused


async def test_a_record_that_had_to_go_is_made_again(scene: Scene) -> None:
    scene.fleet.join("one")
    await scene.sweep.sweep()
    (first,) = await records_told(scene, 1)
    scene.archive._files._entries.pop(first.hex())
    scene.clock.now += 1
    await scene.sweep.sweep()
    second = (await records_told(scene, 2))[-1]
    assert second != first
    assert repeat(await scene.archive.bundle(second))


async def test_a_damaged_record_is_made_again_once_somebody_asked_for_it(scene: Scene, tmp_path: Path) -> None:
    scene.fleet.join("one")
    await scene.sweep.sweep()
    (first,) = await records_told(scene, 1)
    (file,) = (tmp_path / "archive" / "records").iterdir()
    file.write_bytes(b"damaged")
    with pytest.raises(AppraisalUnknown):
        await scene.archive.bundle(first)
    for _ in range(2):
        scene.clock.now += 1
        await scene.sweep.sweep()
    second, third = (await records_told(scene, 3))[1:]
    assert second == third != first
    assert repeat(await scene.archive.bundle(second))


def records(tmp_path: Path) -> int:
    return len(list((tmp_path / "archive" / "records").iterdir()))


async def test_leases_that_come_and_go_leave_no_further_records(scene: Scene, tmp_path: Path) -> None:
    """The registry says when they do, and could else push everything out of the archive."""
    for listed in [scene.fleet.join("one"), scene.fleet.join("two")] * 3:
        scene.fleet.listed = {listed.spiffe_id: listed}
        await scene.sweep.sweep(only_new=True)
        scene.clock.now += 1
    assert records(tmp_path) == 2
    assert len(await told(scene, 6)) == 6


async def test_a_node_between_two_documents_leaves_one_record_of_each(scene: Scene, tmp_path: Path) -> None:
    for listed in [scene.fleet.join("one"), scene.fleet.join("one")] * 3:
        scene.fleet.listed = {listed.spiffe_id: listed}
        await scene.sweep.sweep(only_new=True)
        scene.clock.now += 1
    assert records(tmp_path) == 2


async def test_so_many_last_records_are_remembered_and_those_in_use_stay(scene: Scene) -> None:
    listed = scene.fleet.join("one")
    await scene.sweep.sweep()
    about = (listed.spiffe_id, listed.evidence_digest)
    used = scene.sweep._recorded[about]
    for number in range(30_000):
        if number % 10_000 == 0:
            await scene.sweep.sweep()
        scene.sweep._remember((f"spiffe://mesh.test/node/{number}", bytes(32)), used)
    assert len(scene.sweep._recorded) == 20_000
    assert scene.sweep._recorded[about] == used


async def test_what_never_was_evidence_is_told_of_and_not_archived(scene: Scene, tmp_path: Path) -> None:
    listed, other = scene.fleet.join("one"), scene.fleet.join("two")
    scene.fleet.shown[listed.endpoint] = replace(scene.fleet.shown[listed.endpoint], spki=b"another key")
    del scene.fleet.listed[other.spiffe_id]
    await scene.sweep.sweep()
    (event,) = await told(scene, 1)
    assert event.made is not None
    assert (event.made.refusal, event.made.record_digest) == ("SPKI_MISMATCH", b"")
    assert scene.uncovered() == {listed.spiffe_id: "SPKI_MISMATCH"}
    assert not list((tmp_path / "archive" / "records").iterdir())


async def test_nothing_is_judged_outside_the_policys_validity(scene: Scene) -> None:
    listed = scene.fleet.join("one")
    policy, document = scene.policy.current, scene.fleet.shown[listed.endpoint].document
    question = Question("node", policy.not_after, None, OwnNonce(bytes(32)))
    with pytest.raises(PolicyNotValidNow):
        await Appraisals(scene.archive, scene.feed).make(document, policy, question)


async def test_evidence_is_fetched_once_and_judged_again_from_the_archive(scene: Scene, tmp_path: Path) -> None:
    listed = scene.fleet.join("one")
    await scene.sweep.sweep()
    scene.fleet.away.add(listed.spiffe_id)
    await scene.sweep.sweep()
    assert scene.fleet.fetches == [listed.spiffe_id]
    assert scene.uncovered() == {}
    # Once the archive has lost it, the node is asked again.
    (tmp_path / "archive" / "evidence" / listed.evidence_digest.hex()).write_bytes(b"damaged")
    await scene.sweep.sweep()
    assert scene.uncovered() == {listed.spiffe_id: "PEER_UNREACHABLE"}
    scene.fleet.away.clear()
    await scene.sweep.sweep()
    assert scene.uncovered() == {}


async def test_a_renewed_lease_is_judged_anew(scene: Scene) -> None:
    scene.fleet.join("one")
    await scene.sweep.sweep()
    renewed = scene.fleet.join("one")
    assert scene.uncovered() == {renewed.spiffe_id: "NOT_APPRAISED_YET"}
    await scene.sweep.sweep(only_new=True)
    assert scene.uncovered() == {}
    assert len(scene.fleet.fetches) == 2


async def test_a_lease_of_another_key_is_not_judged_by_what_was_seen_of_the_first(scene: Scene) -> None:
    """The registry might list other keys under evidence that is known to be good."""
    listed = scene.fleet.join("one")
    await scene.sweep.sweep()
    scene.fleet.listed[listed.spiffe_id] = replace(listed, spki_sha256=bytes(32))
    scene.fleet.away.add(listed.spiffe_id)
    await scene.sweep.sweep()
    assert scene.uncovered() == {listed.spiffe_id: "PEER_UNREACHABLE"}


async def test_only_new_leases_are_judged_between_sweeps(scene: Scene) -> None:
    scene.fleet.join("one")
    await scene.sweep.sweep()
    scene.fleet.join("two")
    await scene.sweep.sweep(only_new=True)
    assert [event.sequence for event in await told(scene, 2)] == [1001, 1002]
    assert len(scene.fleet.fetches) == 2


async def test_a_node_that_left_is_forgotten(scene: Scene) -> None:
    listed = scene.fleet.join("one")
    await scene.sweep.sweep()
    del scene.fleet.listed[listed.spiffe_id]
    assert scene.sweep.coverage(0).live_leases == 0
    await scene.sweep.sweep()
    assert scene.sweep.judged(listed).reason == "NOT_APPRAISED_YET"


async def test_a_lease_that_cannot_be_judged_is_live_and_not_covered(scene: Scene) -> None:
    scene.fleet.join("one")
    scene.fleet.unsound["spiffe://mesh.test/node/two"] = "LEASE_MALFORMED"
    await scene.sweep.sweep()
    assert scene.uncovered() == {"spiffe://mesh.test/node/two": "LEASE_MALFORMED"}
    assert (scene.sweep.coverage(0).live_leases, scene.sweep.coverage(0).share) == (2, 0.5)


async def test_old_evidence_covers_less_than_young(scene: Scene) -> None:
    listed = scene.fleet.join("one")
    scene.clock.now += 100
    await scene.sweep.sweep()
    assert scene.uncovered(120) == {}
    assert scene.uncovered(60) == {listed.spiffe_id: "EVIDENCE_TOO_OLD"}
    # Older than policy accepts, it is refused, whatever was asked for.
    scene.clock.now += 3900
    hear(scene.policy, scene.clock.now)
    await scene.sweep.sweep()
    assert scene.uncovered(10_000) == {listed.spiffe_id: "CHALLENGE_TOO_OLD"}


async def test_another_key_than_the_evidences_is_refused(scene: Scene) -> None:
    listed, other = scene.fleet.join("one"), scene.fleet.join("two")
    mixed = Shown(scene.fleet.shown[other.endpoint].spki, scene.fleet.shown[listed.endpoint].document)
    scene.fleet.shown[listed.endpoint] = mixed
    await scene.sweep.sweep()
    assert scene.uncovered() == {listed.spiffe_id: "SPKI_MISMATCH"}


async def test_without_a_fresh_policy_nothing_is_covered(scene: Scene, mesh: JoinedMesh) -> None:
    listed = scene.fleet.join("one")
    await scene.sweep.sweep()
    scene.clock.now += 301
    await scene.sweep.sweep()
    assert scene.uncovered() == {listed.spiffe_id: "POLICY_STALE"}


async def test_a_verdict_that_cannot_be_recorded_is_none(scene: Scene, tmp_path: Path) -> None:
    listed = scene.fleet.join("one")
    (tmp_path / "archive" / "records").rmdir()
    await scene.sweep.sweep()
    assert scene.uncovered() == {listed.spiffe_id: "ARCHIVE_UNAVAILABLE"}


async def test_when_policy_moves_everything_is_judged_again_at_once(scene: Scene, mesh: JoinedMesh) -> None:
    listed = scene.fleet.join("one")
    running = asyncio.create_task(scene.sweep.run(3600))
    try:
        await told(scene, 1)
        joined = scene.fleet.join("two")
        await told(scene, 2)
        scene.policy.accept(mesh.successor(scene.policy.current, roles=mesh.without("node")))
        hear(scene.policy, scene.clock.now)
        again = [event.made for event in (await told(scene, 4))[2:]]
        assert {(made.spiffe_id, made.refusal) for made in again if made is not None} == {
            (listed.spiffe_id, "MEASUREMENT_NOT_ALLOWED"),
            (joined.spiffe_id, "MEASUREMENT_NOT_ALLOWED"),
        }
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@dataclass(slots=True)
class LastMoment:
    """Nodes of which one joins when it was just seen that none is left to judge, and nobody waits for changes yet."""

    fleet: Fleet
    looks: int = 0

    @property
    def listed(self) -> Mapping[str, Listed]:
        self.looks += 1
        if self.looks == 2:
            asyncio.get_running_loop().call_soon(self.fleet.join, "two")
        return self.fleet.listed

    @property
    def unsound(self) -> Mapping[str, str]:
        return self.fleet.unsound

    async def changed(self) -> None:
        await self.fleet.changed()


async def test_a_node_that_joins_just_before_changes_are_waited_for_is_judged_at_once(scene: Scene) -> None:
    scene.fleet.join("one")
    appraisals = Appraisals(scene.archive, scene.feed)
    nodes, ca = LastMoment(scene.fleet), scene.fleet.kms.ca
    sweep = Sweep(nodes, scene.fleet.fetch, scene.policy, lambda: ca.spki, scene.archive, appraisals, scene.clock)
    running = asyncio.create_task(sweep.run(3600))
    try:
        names = [event.made.spiffe_id for event in await told(scene, 2) if event.made is not None]
        assert names == ["spiffe://mesh.test/node/one", "spiffe://mesh.test/node/two"]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_revocation_has_every_node_judged_again_at_once(scene: Scene, mesh: JoinedMesh) -> None:
    listed = scene.fleet.join("one")
    running = asyncio.create_task(scene.sweep.run(3600))
    try:
        await told(scene, 1)
        compose = mesh.tds["node"].compose_hash.hex()
        scene.policy.accept_revocations([mesh.revocation(RevocationKind.MEASUREMENT, compose)])
        hear(scene.policy, scene.clock.now)
        (again,) = [event.made for event in (await told(scene, 2))[1:]]
        assert again is not None
        assert (again.spiffe_id, again.refusal) == (listed.spiffe_id, "MEASUREMENT_REVOKED")
        # Nobody could repeat it from the policy's document, so it is told of and not archived.
        assert again.record_digest == b""
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_a_revocation_does_not_touch_is_recorded_and_repeats(scene: Scene, mesh: JoinedMesh) -> None:
    scene.fleet.join("one")
    other = mesh.revocation(RevocationKind.MEASUREMENT, "ab" * 32)
    scene.policy.accept_revocations([other])
    hear(scene.policy, scene.clock.now)
    await scene.sweep.sweep()
    scene.policy.accept(mesh.successor(scene.policy.current, roles=mesh.without("node")))
    hear(scene.policy, scene.clock.now)
    await scene.sweep.sweep()
    accepted, refused = await records_told(scene, 2)
    for digest in (accepted, refused):
        assert repeat(await scene.archive.bundle(digest))


async def test_a_verdict_under_an_older_policy_does_not_cover(scene: Scene, mesh: JoinedMesh) -> None:
    listed = scene.fleet.join("one")
    await scene.sweep.sweep()
    scene.policy.accept(mesh.successor(scene.policy.current))
    assert scene.uncovered() == {listed.spiffe_id: "NOT_APPRAISED_UNDER_CURRENT_POLICY"}
