"""Leases: who may open, renew and end one, and what is written before a node is listed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.events.outbox import OutboxFull
from libs.identity.lease import Lease
from libs.transparency.leaf import Kind
from services.registry.claims import ClaimMalformed
from services.registry.directory import Snapshot
from services.registry.leases import EndpointMalformed, LeaseUnknown, ModelNotClaimed, NodeLeases, Offer
from services.registry.providers import Engine, Load
from services.registry.store import StoreConflict
from services.registry.view import Change, lease_key
from tests.fakes.leases import MODEL, WEIGHTS, node_lease
from tests.fakes.registries import LEASE_SECONDS, Mesh, Registry, watching

OFFER = Offer("127.0.0.1:4000", ((MODEL, WEIGHTS),), Load(0, 0, 4))


def living(mesh: Mesh, node: Lease) -> Lease:
    """The lease, on the test's clock."""
    return replace(node, until=mesh.now + 600)


async def test_a_node_registers_renews_and_leaves(mesh: Mesh, registry: Registry) -> None:
    node = living(mesh, node_lease())
    async with watching(registry.directory) as watcher:
        assert (await watcher.next(Snapshot)).providers == ()
        listed = await registry.leases.register(node, OFFER)
        assert (await watcher.next(Change)).provider == listed
        assert listed.lease_until_ms == int((mesh.now + LEASE_SECONDS) * 1000)
        mesh.now += 5
        renewed = await registry.leases.renew(node, Load(2, 1, 4), draining=True)
        assert (await watcher.next(Change)).provider == renewed
        assert (renewed.load, renewed.draining) == (Load(2, 1, 4), True)
        assert renewed.lease_until_ms == listed.lease_until_ms + 5000
        await registry.leases.end(node)
        ended = await watcher.next(Change)
    assert (ended.spiffe_id, ended.provider) == (node.certificate.spiffe_id, None)
    assert registry.directory.all() == []


async def test_a_lease_never_outlasts_the_evidence(mesh: Mesh, registry: Registry) -> None:
    node = replace(node_lease(), until=mesh.now + 3)
    assert (await registry.leases.register(node, OFFER)).lease_until_ms == int((mesh.now + 3) * 1000)


async def test_a_node_that_never_registered_has_no_lease(mesh: Mesh, registry: Registry) -> None:
    with pytest.raises(LeaseUnknown):
        await registry.leases.renew(node_lease(), Load(), draining=False)


async def test_another_key_has_no_lease_and_cannot_end_one(mesh: Mesh, registry: Registry) -> None:
    node, impostor = living(mesh, node_lease()), living(mesh, node_lease(key="second"))
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        await registry.leases.register(node, OFFER)
        await watcher.next(Change)
    with pytest.raises(LeaseUnknown):
        await registry.leases.renew(impostor, Load(), draining=False)
    await registry.leases.end(impostor)
    assert await registry.store.providers.get(lease_key(node.certificate.spiffe_id)) is not None


async def test_a_restarted_node_takes_over_its_name(mesh: Mesh, registry: Registry) -> None:
    await registry.leases.register(living(mesh, node_lease()), OFFER)
    again = living(mesh, node_lease(key="second"))
    listed = await registry.leases.register(again, OFFER)
    assert listed.spki_sha256 == again.certificate.spki_sha256.hex()
    with pytest.raises(LeaseUnknown):
        await registry.leases.renew(living(mesh, node_lease()), Load(), draining=False)


@pytest.mark.parametrize(
    "models",
    [(), ((MODEL, "88" * 32),), ((MODEL, WEIGHTS), ("other", WEIGHTS))],
    ids=["fewer", "other weights", "more"],
)
async def test_models_that_are_not_claimed_are_refused(registry: Registry, models: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(ModelNotClaimed) as refused:
        await registry.leases.register(node_lease(), replace(OFFER, models=models))
    assert refused.value.reason == "MODEL_NOT_ALLOWED"
    assert registry.log.entries == []


@pytest.mark.parametrize(
    "endpoint",
    [
        *("", "node", "node:", "node:0", "node:65536", "node:99999", "https://node:1", "no de:1", "node:1/x"),
        *("a..b:1", ".node:1", "node.:1", "..:1", "-:1", "-node:1", "node-.mesh:1", f"{'a' * 64}:1", "node\0:1"),
        *("1.2.3:1", "1.2.3.256:1", "10:1", "[::1::]:1", "[12345::]:1", "[1.2.3.4]:1"),
    ],
)
async def test_an_endpoint_that_is_no_host_and_port_is_refused(registry: Registry, endpoint: str) -> None:
    with pytest.raises(EndpointMalformed):
        await registry.leases.register(node_lease(), replace(OFFER, endpoint=endpoint))


@pytest.mark.parametrize(
    "endpoint", ["node:1", "n-1.mesh.test:65535", f"{'a' * 63}.b:1", "10.0.0.1:4000", "[::1]:4000", "4.nodes:1"]
)
async def test_a_name_or_an_address_is_an_endpoint(mesh: Mesh, registry: Registry, endpoint: str) -> None:
    listed = await registry.leases.register(living(mesh, node_lease()), replace(OFFER, endpoint=endpoint))
    assert listed.endpoint == endpoint


async def test_engine_and_region_are_those_in_the_evidence(mesh: Mesh, registry: Registry) -> None:
    claims = {"engine": "vllm", "engine_args_sha256": "99" * 32, "region": "eu-north"}
    listed = await registry.leases.register(living(mesh, node_lease(more_claims=claims)), OFFER)
    assert (listed.engine, listed.region) == (Engine("vllm", "99" * 32), "eu-north")


async def test_what_the_evidence_does_not_claim_is_not_stated(mesh: Mesh, registry: Registry) -> None:
    listed = await registry.leases.register(living(mesh, node_lease()), OFFER)
    assert (listed.engine, listed.region) == (Engine("llama", ""), "")


@pytest.mark.parametrize(
    "claims", [{"region": "Europe"}, {"region": 7}, {"engine": ""}, {"engine": "a\n"}, {"engine_args_sha256": "99"}]
)
async def test_claims_that_nobody_would_understand_are_refused(registry: Registry, claims: dict[str, object]) -> None:
    with pytest.raises(ClaimMalformed):
        await registry.leases.register(node_lease(more_claims=claims), OFFER)
    assert registry.log.entries == []


@pytest.mark.parametrize("record", [b"", b"garbage", b'{"v":2}'])
async def test_a_record_of_another_version_is_no_lease_and_makes_room_for_one(
    mesh: Mesh, registry: Registry, record: bytes
) -> None:
    node = living(mesh, node_lease())
    key = lease_key(node.certificate.spiffe_id)
    await registry.store.providers.put(key, record, 0)
    with pytest.raises(LeaseUnknown):
        await registry.leases.renew(node, Load(), draining=False)
    await registry.leases.end(node)
    listed = await registry.leases.register(node, OFFER)
    assert await registry.leases.renew(node, OFFER.load, draining=False) == listed


async def test_an_admission_is_recorded_once_per_key(mesh: Mesh, registry: Registry) -> None:
    for _ in range(2):
        await registry.leases.register(living(mesh, node_lease()), OFFER)
    assert registry.log.kinds() == [Kind.SESSION, Kind.ADMISSION]
    await registry.leases.register(living(mesh, node_lease(key="second")), OFFER)
    assert registry.log.kinds() == [Kind.SESSION, Kind.ADMISSION] * 2


async def test_an_admission_under_a_later_policy_version_is_recorded_with_a_session_of_its_own(
    mesh: Mesh, registry: Registry
) -> None:
    before = living(mesh, node_lease())
    after = replace(before, appraisal=replace(before.appraisal, policy_version=2))
    listed = [await registry.leases.register(node, OFFER) for node in (before, after, after)]
    assert listed[0].session_id != listed[1].session_id == listed[2].session_id
    admitted = [body for kind, body in registry.log.entries if kind is Kind.ADMISSION]
    assert [(body["session_id"], body["policy_version"]) for body in admitted] == [
        (listed[0].session_id, 1),
        (listed[1].session_id, 2),
    ]
    assert await registry.sessions.get(listed[0].session_id) is not None


async def test_a_registry_that_is_behind_takes_a_later_admission_for_what_it_is(mesh: Mesh, registry: Registry) -> None:
    behind = living(mesh, node_lease())
    ahead = replace(behind, appraisal=replace(behind.appraisal, policy_version=2))
    listed = [await registry.leases.register(node, OFFER) for node in (ahead, behind)]
    assert listed[0].session_id == listed[1].session_id
    assert registry.log.kinds() == [Kind.SESSION, Kind.ADMISSION]


async def test_a_node_that_was_away_comes_back_under_the_admission_that_it_had(mesh: Mesh, registry: Registry) -> None:
    node = living(mesh, node_lease())
    listed = await registry.leases.register(node, OFFER)
    await registry.leases.end(node)
    assert (await registry.leases.register(node, OFFER)).session_id == listed.session_id
    assert registry.log.kinds() == [Kind.SESSION, Kind.ADMISSION]


async def test_a_node_whose_admission_cannot_be_recorded_is_not_listed_until_it_can(
    mesh: Mesh, registry: Registry
) -> None:
    node = living(mesh, node_lease())
    registry.log.full = True
    for _ in range(2):
        with pytest.raises(OutboxFull):
            await registry.leases.register(node, OFFER)
    assert await registry.store.providers.get(lease_key(node.certificate.spiffe_id)) is None
    registry.log.full = False
    await registry.leases.register(node, OFFER)
    assert registry.log.kinds() == [Kind.SESSION, Kind.ADMISSION]


async def test_a_change_of_an_older_revision_is_a_conflict(mesh: Mesh, registry: Registry) -> None:
    node = living(mesh, node_lease())
    await registry.leases.register(node, OFFER)
    bucket, key = registry.store.providers, lease_key(node.certificate.spiffe_id)
    stored = await bucket.get(key)
    assert stored is not None
    await registry.leases.renew(node, Load(), draining=False)
    with pytest.raises(StoreConflict):
        await bucket.put(key, b"{}", stored.revision)
    with pytest.raises(StoreConflict):
        await bucket.delete(key, stored.revision)
    with pytest.raises(StoreConflict):
        await bucket.put(key, b"{}", 0)


async def test_a_renewal_that_is_not_based_on_the_newest_record_reads_it_first(mesh: Mesh, registry: Registry) -> None:
    """What this registry last saw may be behind what another one wrote."""
    node = living(mesh, node_lease())
    first = await registry.leases.register(node, OFFER)
    stored = await registry.store.providers.get(lease_key(first.spiffe_id))
    assert stored is not None
    await registry.leases.renew(node, Load(running=1), draining=False)
    behind = NodeLeases(
        registry.store.providers,
        registry.sessions,
        registry.catalogue,
        registry.admissions,
        15.0,
        clock=lambda: mesh.now,
        known=lambda _: (first, stored.revision),
    )
    assert (await behind.renew(node, Load(running=2), draining=False)).load.running == 2
    await registry.leases.end(node)
    with pytest.raises(LeaseUnknown):
        await behind.renew(node, Load(running=3), draining=False)
