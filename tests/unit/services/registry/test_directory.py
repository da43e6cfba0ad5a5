"""The directory: fed by the store alone, the same in every registry, and it outlives the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import pytest

from libs.identity.lease import Lease
from services.registry.directory import Change, Directory, WatcherTooSlow, key_of
from services.registry.leases import LeaseUnknown, Offer
from services.registry.providers import Load, Provider
from services.registry.store import StoreUnavailable
from services.registry.watch import Snapshot, watch
from tests.fakes.leases import MODEL, WEIGHTS, node_lease
from tests.fakes.registries import LEASE_SECONDS, PATIENCE_SECONDS, Mesh, Registry, watching

OFFER = Offer("127.0.0.1:4000", ((MODEL, WEIGHTS),), Load(0, 0, 4))


def living(mesh: Mesh, instance: str = "one") -> Lease:
    return replace(node_lease(instance), until=mesh.now + 600)


async def drain(events: AsyncIterator[object]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for _ in events:
            pass


async def test_a_lease_that_runs_out_is_deleted_and_watchers_hear_it(mesh: Mesh, registry: Registry) -> None:
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        listed = await registry.leases.register(living(mesh), OFFER)
        await watcher.next(Change)
        mesh.now += LEASE_SECONDS + 1
        assert registry.directory.all() == []
        await registry.directory.delete_expired()
        ended = await watcher.next(Change)
    assert (ended.spiffe_id, ended.provider) == (listed.spiffe_id, None)
    assert await registry.store.providers.get(key_of(listed.spiffe_id)) is None


async def test_a_lease_renewed_behind_this_view_is_not_deleted(mesh: Mesh, registry: Registry) -> None:
    """Another registry renews while this one lags: what it believes to have run out lives."""
    node = living(mesh)
    behind = Directory(registry.store.providers, clock=lambda: mesh.now + LEASE_SECONDS + 1)
    following = asyncio.create_task(behind.follow())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await behind.synchronised.wait()
        async with watching(behind) as watcher:
            await watcher.next(Snapshot)
            await registry.leases.register(node, OFFER)
            await watcher.next(Change)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await registry.leases.renew(node, Load(), draining=False)
        await behind.delete_expired()
    assert await registry.store.providers.get(key_of(node.certificate.spiffe_id)) is not None


async def test_two_registries_on_one_store_show_the_same(mesh: Mesh) -> None:
    async with mesh.registry() as first, mesh.registry() as second, watching(second.directory) as watcher:
        await watcher.next(Snapshot)
        listed = await first.leases.register(living(mesh), OFFER)
        assert (await watcher.next(Change)).provider == listed
        assert second.directory.all() == [listed]
        renewed = await second.leases.renew(living(mesh), Load(1, 0, 4), draining=False)
        assert (await watcher.next(Change)).provider == renewed
        await second.leases.end(living(mesh))
        assert (await watcher.next(Change)).provider is None


async def test_a_registry_that_starts_later_shows_what_is_stored(mesh: Mesh) -> None:
    async with mesh.registry() as first:
        listed = [await first.leases.register(living(mesh, name), OFFER) for name in ("b", "a")]
    async with mesh.registry() as second:
        assert second.directory.all() == [listed[1], listed[0]]


async def test_a_watch_is_a_snapshot_and_then_every_change_in_order(mesh: Mesh, registry: Registry) -> None:
    async with watching(registry.directory) as early:
        sequences = [(await early.next(Snapshot)).sequence]
        first = await registry.leases.register(living(mesh, "a"), OFFER)
        sequences.append((await early.next(Change)).sequence)
        async with watching(registry.directory) as late:
            snapshot = await late.next(Snapshot)
            assert snapshot.providers == (first,)
            assert snapshot.sequence == sequences[-1]
            second = await registry.leases.register(living(mesh, "b"), OFFER)
            for watcher in (early, late):
                change = await watcher.next(Change)
                assert change.provider == second
                sequences.append(change.sequence)
    assert sequences[0] < sequences[1] < sequences[2] == sequences[3]


async def test_a_watcher_that_does_not_read_is_dropped_and_holds_nobody_up(mesh: Mesh, registry: Registry) -> None:
    directory = registry.directory
    node = await registry.leases.register(living(mesh), OFFER)
    async with aclosing(watch(directory)) as slow, watching(directory) as quick:
        assert isinstance(await anext(slow), Snapshot)
        await quick.next(Snapshot)
        for number in range(1030):
            directory._tell(node.spiffe_id, node)
            if number % 100 == 0:
                await quick.next(Change)
        with pytest.raises(WatcherTooSlow, match="watch again"):
            await drain(slow)
        await quick.next(Change)


async def test_a_record_that_no_registry_wrote_is_passed_over(mesh: Mesh, registry: Registry) -> None:
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        await registry.store.providers.put("node.garbage", b"garbage", 0)
        listed = await registry.leases.register(living(mesh), OFFER)
        assert (await watcher.next(Change)).provider == listed


async def test_a_lease_overwritten_by_what_no_registry_wrote_ends(mesh: Mesh, registry: Registry) -> None:
    node = living(mesh)
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        await registry.leases.register(node, OFFER)
        await watcher.next(Change)
        stored = await registry.store.providers.get(key_of(node.certificate.spiffe_id))
        assert stored is not None
        await registry.store.providers.put(key_of(node.certificate.spiffe_id), b'{"v":9}', stored.revision)
        assert (await watcher.next(Change)).provider is None
    assert registry.directory.all() == []


async def test_after_the_store_is_lost_a_node_registers_again(mesh: Mesh, registry: Registry) -> None:
    node = living(mesh)
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        await registry.leases.register(node, OFFER)
        listed = await watcher.next(Change)
        await mesh.broker.kill()
        mesh.broker.forget()
        await mesh.broker.start()
        gone = await watcher.next(Change)
        assert gone.provider is None
        with pytest.raises(LeaseUnknown):
            await registry.leases.renew(node, Load(), draining=False)
        again = await registry.leases.register(node, OFFER)
        back = await watcher.next(Change)
    assert back.provider == again
    assert listed.sequence < gone.sequence < back.sequence


async def test_while_the_broker_is_away_calls_are_refused_and_the_last_view_stands(mesh: Mesh) -> None:
    async with mesh.registry() as registry:
        async with watching(registry.directory) as watcher:
            await watcher.next(Snapshot)
            await registry.leases.register(living(mesh), OFFER)
            await watcher.next(Change)
        await mesh.broker.kill()
        with pytest.raises(StoreUnavailable):
            await registry.leases.renew(living(mesh), Load(), draining=False)
        assert [type(provider) for provider in registry.directory.all()] == [Provider]


async def test_following_ends_when_it_is_told_to_though_the_broker_is_gone(mesh: Mesh, registry: Registry) -> None:
    directory = Directory(registry.store.providers)
    following = asyncio.create_task(directory.follow())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await directory.synchronised.wait()
        await mesh.broker.kill()
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
