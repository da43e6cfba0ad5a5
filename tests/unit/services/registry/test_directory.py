"""The directory: fed by the store alone, the same in every registry, and it outlives the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import cast

import pytest
from nats.js.kv import KeyValue

from libs.identity.lease import Lease
from services.registry.directory import Alive, Changes, Directory, RegistryBehind, Snapshot, WatcherTooSlow
from services.registry.leases import LeaseUnknown, Offer
from services.registry.providers import Load, Provider, State
from services.registry.store import Bucket, StoreUnavailable
from services.registry.view import HISTORY_KEY, Change, History, HistoryMalformed, Position, lease_key
from services.registry.watch import watch
from tests.fakes.leases import MODEL, TRUST_DOMAIN, WEIGHTS, node_lease
from tests.fakes.registries import LEASE_SECONDS, PATIENCE_SECONDS, Mesh, Registry, until, watching

OPERATOR = "spiffe://mesh.test/operator/ann"
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
    assert await registry.store.providers.get(lease_key(listed.spiffe_id)) is None


async def test_a_lease_renewed_behind_this_view_is_not_deleted(mesh: Mesh, registry: Registry) -> None:
    """Another registry renews while this one lags: what it believes to have run out lives."""
    node = living(mesh)
    behind = Directory(registry.store.providers, TRUST_DOMAIN, clock=lambda: mesh.now + LEASE_SECONDS + 1)
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
    assert await registry.store.providers.get(lease_key(node.certificate.spiffe_id)) is not None


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
        sequences = [(await early.next(Snapshot)).position.sequence]
        first = await registry.leases.register(living(mesh, "a"), OFFER)
        sequences.append((await early.next(Change)).position.sequence)
        async with watching(registry.directory) as late:
            snapshot = await late.next(Snapshot)
            assert snapshot.providers == (first,)
            assert snapshot.position.sequence == sequences[-1]
            second = await registry.leases.register(living(mesh, "b"), OFFER)
            for watcher in (early, late):
                change = await watcher.next(Change)
                assert change.provider == second
                sequences.append(change.position.sequence)
    assert sequences[0] < sequences[1] < sequences[2] == sequences[3]


async def test_a_watcher_that_does_not_read_is_dropped_and_holds_nobody_up(mesh: Mesh, registry: Registry) -> None:
    directory = registry.directory
    node = await registry.leases.register(living(mesh), OFFER)
    async with aclosing(watch(directory)) as slow, watching(directory) as quick:
        assert isinstance(await anext(slow), Snapshot)
        await quick.next(Snapshot)
        for number in range(1030):
            directory._give(Change(node.spiffe_id, node, directory.position))
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
        stored = await registry.store.providers.get(lease_key(node.certificate.spiffe_id))
        assert stored is not None
        await registry.store.providers.put(lease_key(node.certificate.spiffe_id), b'{"v":9}', stored.revision)
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
        emptied = await watcher.next(Snapshot)
        assert emptied.providers == ()
        with pytest.raises(LeaseUnknown):
            await registry.leases.renew(node, Load(), draining=False)
        again = await registry.leases.register(node, OFFER)
        back = await watcher.next(Change)
    assert back.provider == again
    assert listed.position.epoch != emptied.position.epoch == back.position.epoch


async def test_after_its_bucket_is_deleted_under_it_a_registry_is_rebuilt_by_heartbeats(mesh: Mesh) -> None:
    """Two registries, and nodes that do what a node does when it is told that its lease is unknown."""
    nodes = [living(mesh, name) for name in ("a", "b")]
    async with mesh.registry() as first, mesh.registry() as second, watching(second.directory) as watcher:
        await watcher.next(Snapshot)
        listed = [await first.leases.register(node, OFFER) for node in nodes]
        assert [(await watcher.next(Change)).provider for _ in nodes] == listed
        await first.delete_buckets()
        emptied = await watcher.next(Snapshot)
        assert emptied.providers == ()
        for node in nodes:
            await beaten(first, node)
        again = [(await watcher.next(Change)).provider for _ in nodes]
        assert again == listed
        for provider in listed:
            assert await second.sessions.get(provider.session_id) is not None
        assert second.directory.all() == listed


async def beaten(registry: Registry, node: Lease) -> None:
    """A heartbeat: renew, or register where the lease is unknown; the registry may still be finding its bucket."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                try:
                    await registry.leases.renew(node, OFFER.load, draining=False)
                except LeaseUnknown:
                    await registry.leases.register(node, OFFER)
                return
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_a_watcher_resumes_where_it_was_at_another_registry(mesh: Mesh) -> None:
    nodes = {name: living(mesh, name) for name in ("a", "b", "c")}
    async with mesh.registry() as first, mesh.registry() as second:
        async with watching(first.directory) as watcher:
            await watcher.next(Snapshot)
            listed = {name: await first.leases.register(nodes[name], OFFER) for name in ("a", "b")}
            left = [(await watcher.next(Change)).position for _ in listed][-1]
        await first.leases.end(nodes["a"])
        renewed = [await first.leases.renew(nodes["b"], Load(busy, 0, 4), draining=False) for busy in (1, 2)]
        new = await first.leases.register(nodes["c"], OFFER)
        await reached(second, 3)
        async with watching(second.directory, left) as watcher:
            missed = [await watcher.next(Change) for _ in range(3)]
            assert [change.provider for change in missed] == [None, renewed[-1], new]
            assert missed[0].spiffe_id == listed["a"].spiffe_id
            assert left.sequence < missed[0].position.sequence < missed[1].position.sequence
            await first.leases.end(nodes["c"])
            assert (await watcher.next(Change)).provider is None


async def reached(registry: Registry, names: int) -> None:
    """Wait until a registry knows of so many names, ended ones included, and of nothing that is still to come."""
    last = (await registry.store.providers.incarnation()).last
    await until(lambda: registry.directory.position.sequence >= last)
    view = registry.directory._view
    assert len(view.ended()) + len(view.providers()) == names


async def test_a_watcher_that_missed_nothing_is_told_so_at_once(mesh: Mesh, registry: Registry) -> None:
    async with watching(registry.directory) as watcher:
        snapshot = await watcher.next(Snapshot)
    async with watching(registry.directory, snapshot.position) as watcher:
        assert (await watcher.next(Alive)).position == snapshot.position


@pytest.mark.parametrize("known", [Position("00" * 16, 1), Position("", 0), None], ids=["another life", "none", "new"])
async def test_a_watcher_from_where_nobody_remembers_gets_the_whole_state(
    mesh: Mesh, registry: Registry, known: Position | None
) -> None:
    async with watching(registry.directory, known) as watcher:
        assert (await watcher.next(Snapshot)).position == registry.directory.position


async def test_marks_of_deletion_are_swept_and_a_watch_that_needs_them_begins_anew(mesh: Mesh) -> None:
    nodes = [living(mesh, f"n{number}") for number in range(6)]
    async with mesh.registry() as first, mesh.registry() as second:
        before = first.directory.position
        for node in nodes:
            await first.leases.register(node, OFFER)
            await first.leases.end(node)
        await reached(first, 6)
        late = first.directory.position
        await first.directory.forget_ended(most=4)
        for registry in (first, second):
            await reached(registry, 2)
            assert isinstance(registry.directory.since(before)[0], Snapshot)
            assert isinstance(registry.directory.since(late)[0], Alive)
        async with mesh.registry() as third:
            await reached(third, 2)
            assert isinstance(third.directory.since(before)[0], Snapshot)
            assert isinstance(third.directory.since(late)[0], Alive)


async def come_and_go(mesh: Mesh, registry: Registry, names: range) -> None:
    for number in names:
        await registry.leases.register(living(mesh, f"n{number}"), OFFER)
        await registry.leases.end(living(mesh, f"n{number}"))


async def left_behind(registry: Registry) -> Directory:
    """What another registry knows that read all of the store by now and nothing after."""
    behind = Directory(registry.store.providers, TRUST_DOMAIN)
    following = asyncio.create_task(behind.follow())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await behind.synchronised.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    return behind


async def test_a_watcher_that_knows_more_is_not_taken_back_by_a_registry_that_is_behind(
    mesh: Mesh, registry: Registry
) -> None:
    behind = await left_behind(registry)
    begun = behind.position
    await registry.leases.register(living(mesh, "n1"), OFFER)
    await until(lambda: registry.directory.position != begun)
    ahead = registry.directory.position
    with pytest.raises(RegistryBehind):
        behind.since(ahead)
    assert isinstance(behind.since(begun)[0], Alive)
    assert isinstance(behind.since(Position("another life", ahead.sequence))[0], Snapshot)


async def test_a_registry_that_is_behind_brings_back_no_watch_that_needs_swept_marks(
    mesh: Mesh, registry: Registry
) -> None:
    await come_and_go(mesh, registry, range(6))
    behind = await left_behind(registry)
    await come_and_go(mesh, registry, range(6, 12))
    ahead = (await left_behind(registry)).position
    await until(lambda: registry.directory.position == ahead)
    await registry.directory.forget_ended(most=2)
    swept = Position(ahead.epoch, ahead.sequence - 4)
    await until(lambda: isinstance(registry.directory.since(swept)[0], Snapshot))
    await behind.forget_ended(most=2)
    assert isinstance((await left_behind(registry)).since(swept)[0], Snapshot)


async def test_a_registry_that_is_behind_brings_no_earlier_life_of_the_store_back(
    mesh: Mesh, registry: Registry
) -> None:
    await come_and_go(mesh, registry, range(6))
    behind = await left_behind(registry)
    stored = await registry.store.providers.get(HISTORY_KEY)
    assert stored is not None
    await registry.store.providers.put(HISTORY_KEY, History("ab" * 16).encode(), stored.revision)
    await behind.forget_ended(most=2)
    assert (await left_behind(registry)).position.epoch == "ab" * 16


async def test_a_history_that_cannot_be_read_has_nothing_swept(mesh: Mesh, registry: Registry) -> None:
    await come_and_go(mesh, registry, range(6))
    behind = await left_behind(registry)
    stored = await registry.store.providers.get(HISTORY_KEY)
    assert stored is not None
    await registry.store.providers.put(HISTORY_KEY, b"no history", stored.revision)
    with pytest.raises(HistoryMalformed):
        await behind.forget_ended(most=2)


class Deaf:
    """Gives what is stored, and of all that comes then nothing, as if the broker had lost it."""

    def __init__(self, watcher: KeyValue.KeyWatcher) -> None:
        self._watcher = watcher
        self._whole = False

    async def __anext__(self) -> KeyValue.Entry | None:
        if self._whole:
            await asyncio.Event().wait()
        entry: KeyValue.Entry | None = await anext(self._watcher)
        self._whole = entry is None
        return entry

    async def stop(self) -> None:
        await self._watcher.stop()  # type: ignore[no-untyped-call]


class DeafAtFirst(Bucket):
    watches = 0

    async def watch(self, keys: str = ">") -> KeyValue.KeyWatcher:
        self.watches += 1
        watcher = await super().watch(keys)
        return cast(KeyValue.KeyWatcher, Deaf(watcher)) if self.watches == 1 else watcher


async def test_a_watch_that_lost_what_came_is_begun_anew(mesh: Mesh, registry: Registry) -> None:
    bucket = DeafAtFirst(registry.link, "registry_providers", 10.0)
    directory = Directory(bucket, TRUST_DOMAIN, clock=lambda: mesh.now)
    following = asyncio.create_task(directory.follow())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await directory.synchronised.wait()
    listed = await registry.leases.register(living(mesh), OFFER)
    await until(lambda: directory.all() == [listed])
    assert bucket.watches > 1
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_store_that_went_back_begins_another_life(mesh: Mesh, registry: Registry) -> None:
    """An older copy of the disk is put under the broker: its revisions are given out a second time."""
    async with watching(registry.directory) as watcher:
        first = await watcher.next(Snapshot)
        await mesh.broker.kill()
        mesh.broker.keep_copy()
        await mesh.broker.start()
        await beaten(registry, living(mesh, "lost"))
        lost = await watcher.next(Change)
        assert lost.position.epoch == first.position.epoch
        await mesh.broker.kill()
        mesh.broker.put_copy_back()
        await mesh.broker.start()
        back = await watcher.next(Snapshot)
        assert back.providers == ()
        assert back.position.epoch != first.position.epoch
    async with watching(registry.directory, lost.position) as watcher:
        await watcher.next(Snapshot)


async def test_a_life_that_another_registry_began_is_read_from_its_beginning(mesh: Mesh, registry: Registry) -> None:
    async with watching(registry.directory) as watcher:
        await watcher.next(Snapshot)
        listed = await registry.leases.register(living(mesh), OFFER)
        await watcher.next(Change)
        stored = await registry.store.providers.get(HISTORY_KEY)
        assert stored is not None
        await registry.store.providers.put(HISTORY_KEY, History("ab" * 16).encode(), stored.revision)
        begun = await watcher.next(Snapshot)
    assert (begun.providers, begun.position.epoch) == ((listed,), "ab" * 16)


async def test_every_watcher_and_every_registry_comes_to_the_same_digest(mesh: Mesh) -> None:
    async with mesh.registry() as first, mesh.registry() as second:
        for name in ("a", "b"):
            await first.leases.register(living(mesh, name), OFFER)
        await second.drains.begin(living(mesh, "b").certificate.spiffe_id, OPERATOR, "disk")
        for registry in (first, second):
            await reached(registry, 2)
        async with watching(first.directory) as one, watching(second.directory, first.directory.position) as other:
            assert (await one.next(Snapshot)).digest == (await other.next(Alive)).digest
        before = first.directory.since(None)[0]
        await second.leases.renew(living(mesh, "a"), Load(1, 0, 4), draining=False)
        await reached(first, 2)
        after = first.directory.since(None)[0]
        assert isinstance(before, Snapshot)
        assert isinstance(after, Snapshot)
        assert before.digest != after.digest


async def test_register_at_one_renew_at_another_drain_at_a_third(mesh: Mesh) -> None:
    node = living(mesh)
    async with mesh.registry() as first, mesh.registry() as second, mesh.registry() as third:
        listed = await first.leases.register(node, OFFER)
        renewed = await second.leases.renew(node, Load(1, 0, 4), draining=False)
        await third.drains.begin(listed.spiffe_id, OPERATOR, "disk")
        for registry in (first, second, third):
            await reached(registry, 1)
            (seen,) = registry.directory.all()
            assert replace(seen, drain=None) == renewed
            assert seen.drain is not None
            assert seen.state is State.DRAINING
        await first.drains.end(listed.spiffe_id, OPERATOR)
        for registry in (first, second, third):
            await reached(registry, 1)
            assert registry.directory.all() == [renewed]


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
    directory = Directory(registry.store.providers, TRUST_DOMAIN)
    following = asyncio.create_task(directory.follow())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await directory.synchronised.wait()
        await mesh.broker.kill()
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following


async def test_changes_within_a_moment_come_together_each_node_once_and_in_order(
    mesh: Mesh, registry: Registry
) -> None:
    directory, nodes = registry.directory, [living(mesh, f"n{number}") for number in range(3)]
    listed = [await registry.leases.register(node, OFFER) for node in nodes]
    await until(lambda: len(directory.all()) == 3)
    async with aclosing(watch(directory)) as watcher:
        begun = await anext(watcher)
        assert isinstance(begun, Snapshot)
        epoch, first = begun.position.epoch, begun.position.sequence
        told = [
            Change(listed[0].spiffe_id, listed[0], Position(epoch, first + 1)),
            Change(listed[1].spiffe_id, None, Position(epoch, first + 2)),
            Change(listed[0].spiffe_id, replace(listed[0], draining=True), Position(epoch, first + 3)),
        ]
        for change in told:
            directory._tell(change)
        together = await anext(watcher)
        assert together == Changes((told[1], told[2]), Position(epoch, first + 3))


async def test_what_is_told_at_once_comes_after_what_was_gathered_before(mesh: Mesh, registry: Registry) -> None:
    directory = registry.directory
    listed = await registry.leases.register(living(mesh), OFFER)
    await until(lambda: len(directory.all()) == 1)
    async with aclosing(watch(directory)) as watcher:
        await anext(watcher)
        change = Change(listed.spiffe_id, listed, directory.position)
        directory._tell(change)
        directory._tell(directory._alive())
        assert [await anext(watcher), type(await anext(watcher))] == [change, Alive]


async def test_a_new_watcher_is_not_told_of_what_it_begins_with(mesh: Mesh, registry: Registry) -> None:
    directory = registry.directory
    listed = await registry.leases.register(living(mesh), OFFER)
    await until(lambda: len(directory.all()) == 1)
    directory._tell(Change(listed.spiffe_id, listed, directory.position))
    async with aclosing(watch(directory)) as watcher:
        assert isinstance(await anext(watcher), Snapshot)
        directory._tell(directory._alive())
        assert isinstance(await anext(watcher), Alive)
