"""Drains: an operator's stands whatever the node does, and only an operator ends it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.identity.lease import Lease
from services.registry.directory import Snapshot
from services.registry.drains import DrainReasonMalformed, ProviderUnknown
from services.registry.leases import LeaseUnknown, Offer
from services.registry.providers import Drain, Load, State
from services.registry.view import Change, drain_key, lease_key
from tests.fakes.leases import MODEL, WEIGHTS, node_lease
from tests.fakes.registries import LEASE_SECONDS, Mesh, Registry, Watching, watching

OPERATOR, OTHER = "spiffe://mesh.test/operator/ann", "spiffe://mesh.test/operator/bob"
NODE = "spiffe://mesh.test/node/one"
OFFER = Offer("127.0.0.1:4000", ((MODEL, WEIGHTS),), Load(1, 0, 4))
IDLE = Load(0, 0, 4)


def living(mesh: Mesh, key: str = "first") -> Lease:
    return replace(node_lease(key=key), until=mesh.now + 600)


async def state(watcher: Watching) -> State | None:
    provider = (await watcher.next(Change)).provider
    return None if provider is None else provider.state


async def test_a_drained_node_is_one_with_nothing_running_and_is_resumed(mesh: Mesh, registry: Registry) -> None:
    node = living(mesh)
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        await registry.leases.register(node, OFFER)
        assert await state(watcher) is State.ACTIVE
        await registry.drains.begin(NODE, OPERATOR, "disk")
        drained = (await watcher.next(Change)).provider
        assert drained is not None
        assert (drained.state, drained.drain) == (State.DRAINING, Drain(OPERATOR, "disk", int(mesh.now * 1000)))
        await registry.leases.renew(node, IDLE, draining=False)
        assert await state(watcher) is State.DRAINED
        await registry.drains.end(NODE, OPERATOR)
        assert await state(watcher) is State.ACTIVE


async def test_neither_renewal_nor_registration_nor_a_lease_that_ran_out_undoes_a_drain(
    mesh: Mesh, registry: Registry
) -> None:
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        await registry.leases.register(living(mesh), OFFER)
        assert await state(watcher) is State.ACTIVE
        await registry.drains.begin(NODE, OPERATOR, "")
        assert await state(watcher) is State.DRAINING
        await registry.leases.renew(living(mesh), OFFER.load, draining=False)
        assert await state(watcher) is State.DRAINING
        await registry.leases.register(living(mesh, "second"), OFFER)
        assert await state(watcher) is State.DRAINING
        await registry.leases.end(living(mesh, "second"))
        assert await state(watcher) is None
        await registry.leases.register(living(mesh, "third"), OFFER)
        assert await state(watcher) is State.DRAINING
        mesh.now += LEASE_SECONDS + 1
        await registry.directory.delete_expired()
        assert await state(watcher) is None
        await registry.leases.register(living(mesh, "third"), OFFER)
        assert await state(watcher) is State.DRAINING


async def test_a_drain_outlives_the_registries_and_the_broker(mesh: Mesh) -> None:
    async with mesh.registry() as registry:
        await registry.leases.register(living(mesh), OFFER)
        await registry.drains.begin(NODE, OPERATOR, "")
    await mesh.broker.kill()
    await mesh.broker.start()
    async with mesh.registry() as registry:
        assert [provider.state for provider in registry.directory.all()] == [State.DRAINING]


async def test_the_first_who_drains_is_named(mesh: Mesh, registry: Registry) -> None:
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        await registry.leases.register(living(mesh), OFFER)
        await watcher.next(Change)
        await registry.drains.begin(NODE, OPERATOR, "disk")
        await registry.drains.begin(NODE, OTHER, "fan")
        drained = (await watcher.next(Change)).provider
        assert drained is not None
        assert drained.drain == Drain(OPERATOR, "disk", int(mesh.now * 1000))


async def test_a_node_drains_itself_until_it_says_otherwise(mesh: Mesh, registry: Registry) -> None:
    node = living(mesh)
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        await registry.leases.register(node, OFFER)
        assert await state(watcher) is State.ACTIVE
        await registry.leases.drain(node)
        assert await state(watcher) is State.DRAINING
        await registry.leases.renew(node, IDLE, draining=True)
        assert await state(watcher) is State.DRAINED
        await registry.leases.renew(node, IDLE, draining=False)
        assert await state(watcher) is State.ACTIVE


async def test_another_key_cannot_drain_a_node(mesh: Mesh, registry: Registry) -> None:
    await registry.leases.register(living(mesh), OFFER)
    with pytest.raises(LeaseUnknown):
        await registry.leases.drain(living(mesh, "second"))


@pytest.mark.parametrize(
    "name",
    [
        *("", "one", "spiffe://mesh.test/node/two", "spiffe://mesh.test/node/", "spiffe://mesh.test/node/one.two"),
        *("spiffe://mesh.test/router/one", "spiffe://other.test/node/one", "spiffe://mesh.test/node/>"),
    ],
)
async def test_a_name_without_a_lease_drains_nobody(mesh: Mesh, registry: Registry, name: str) -> None:
    await registry.leases.register(living(mesh), OFFER)
    with pytest.raises(ProviderUnknown):
        await registry.drains.begin(name, OPERATOR, "")
    assert await registry.store.providers.get(drain_key(NODE)) is None


@pytest.mark.parametrize("reason", ["x" * 201, "a\nb", "é"])
async def test_a_reason_that_people_cannot_read_is_refused(mesh: Mesh, registry: Registry, reason: str) -> None:
    await registry.leases.register(living(mesh), OFFER)
    with pytest.raises(DrainReasonMalformed):
        await registry.drains.begin(NODE, OPERATOR, reason)


async def test_resuming_what_is_not_drained_succeeds_and_a_misspelt_name_does_not(registry: Registry) -> None:
    await registry.drains.end(NODE, OPERATOR)
    with pytest.raises(ProviderUnknown):
        await registry.drains.end("one", OPERATOR)


async def test_a_drain_that_cannot_be_read_drains(mesh: Mesh, registry: Registry) -> None:
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        await registry.leases.register(living(mesh), OFFER)
        await watcher.next(Change)
        await registry.store.providers.put(drain_key(NODE), b"garbage", 0)
        assert await state(watcher) is State.DRAINING
        await registry.drains.end(NODE, OPERATOR)
        assert await state(watcher) is State.ACTIVE


async def test_a_record_under_another_nodes_name_lists_nobody(mesh: Mesh, registry: Registry) -> None:
    listed = await registry.leases.register(living(mesh), OFFER)
    bucket = registry.store.providers
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        await bucket.put(lease_key("spiffe://mesh.test/node/two"), listed.encode(), 0)
        await registry.leases.renew(living(mesh), IDLE, draining=False)
        assert (await watcher.next(Change)).spiffe_id == NODE
    assert [provider.spiffe_id for provider in registry.directory.all()] == [NODE]
