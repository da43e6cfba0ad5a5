"""Which sessions are kept: all that anyone may need, no more than was allowed, and never fewer than are in use."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from libs import jcs
from libs.identity.lease import Lease
from libs.transparency.leaf import Kind
from services.registry.catalogue import Catalogue, Retention
from services.registry.following import Entry, entries
from services.registry.leases import LeaseUnknown, Offer
from services.registry.providers import Load, Provider
from services.registry.sessions import SUMMARY_PREFIX
from services.registry.store import Bucket, make_store
from tests.fakes.leases import MODEL, WEIGHTS, node_lease
from tests.fakes.registries import PATIENCE_SECONDS, RETENTION, Mesh, Registry, until

OFFER = Offer("127.0.0.1:4000", ((MODEL, WEIGHTS),), Load(0, 0, 4))
DAY = 86_400


def living(mesh: Mesh, instance: str = "one", *, key: str = "first", seconds: float = 600) -> Lease:
    node = node_lease(instance, key=key)
    return replace(node, until=mesh.now + seconds, appraisal=replace(node.appraisal, appraised_at=int(mesh.now)))


async def registered(registry: Registry, node: Lease) -> Provider:
    """Register, and wait until the registry itself has heard of it from the store."""
    listed = await registry.leases.register(node, OFFER)
    await until(lambda: listed.session_id in registry.catalogue and listed in registry.directory.all())
    return listed


def ids(registry: Registry) -> list[str]:
    return [summary.session_id for summary in registry.catalogue.all()]


async def stored_keys(bucket: Bucket) -> set[str]:
    keys: set[str] = set()
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(entries(bucket)) as stored:
        while isinstance(entry := await anext(stored), Entry):
            keys.add(entry.key)
    return keys


async def test_sessions_are_listed_the_newest_first_and_the_same_everywhere(mesh: Mesh) -> None:
    async with mesh.registry() as first:
        old = await registered(first, living(mesh))
        mesh.now += 5
        new = await registered(first, living(mesh, key="second"))
        assert ids(first) == [new.session_id, old.session_id]
        summary = first.catalogue.all()[1]
        assert (summary.spiffe_id, summary.models) == (old.spiffe_id, (MODEL,))
        assert summary.expires_at == summary.established_at + 600
        async with mesh.registry() as second:
            assert second.catalogue.all() == first.catalogue.all()


async def test_a_session_is_kept_for_as_long_as_was_said_after_its_end_and_leaves_nothing(
    mesh: Mesh, registry: Registry
) -> None:
    node = living(mesh)
    listed = await registered(registry, node)
    await registry.leases.end(node)
    await until(lambda: not registry.directory.sessions())
    mesh.now += 600 + DAY - 1
    await registry.catalogue.let_go()
    assert await registry.sessions.get(listed.session_id) is not None
    mesh.now += 1
    await registry.catalogue.let_go()
    assert await registry.sessions.get(listed.session_id) is None
    assert ids(registry) == []
    assert await stored_keys(registry.store.sessions) == set()


async def test_the_session_of_a_node_with_a_lease_is_never_let_go(mesh: Mesh, registry: Registry) -> None:
    """However old it is, and however many bytes there are; also where the registry has just lost sight of time."""
    listed = await registered(registry, living(mesh, seconds=10))
    mesh.now += 365 * DAY
    assert registry.directory.all() == []
    meagre = catalogue_of(mesh, registry, Retention(0, 0))
    for catalogue in (registry.catalogue, meagre):
        await catalogue.let_go()
        assert await registry.sessions.get(listed.session_id) is not None


def catalogue_of(mesh: Mesh, registry: Registry, retention: Retention) -> Catalogue:
    """Another bound, for what the registry has read."""
    catalogue = Catalogue(
        registry.store.sessions, registry.sessions, registry.directory.sessions, retention, clock=lambda: mesh.now
    )
    catalogue._kept = dict(registry.catalogue._kept)
    return catalogue


async def test_a_session_that_has_not_ended_is_not_let_go(mesh: Mesh, registry: Registry) -> None:
    """Its node may be registering at this moment."""
    node = living(mesh)
    listed = await registered(registry, node)
    await registry.leases.end(node)
    await until(lambda: not registry.directory.sessions())
    await catalogue_of(mesh, registry, Retention(0, 0)).let_go()
    assert await registry.sessions.get(listed.session_id) is not None


async def test_beyond_the_bytes_the_oldest_go_first(mesh: Mesh, registry: Registry) -> None:
    nodes = []
    for number in range(4):
        nodes.append(living(mesh, key=str(number)))
        await registered(registry, nodes[-1])
        mesh.now += 1
    await registry.leases.end(nodes[-1])
    await until(lambda: not registry.directory.sessions())
    newest_first = ids(registry)
    mesh.now += 600
    size = registry.catalogue.all()[0].octets
    await catalogue_of(mesh, registry, replace(RETENTION, octets=2 * size + size // 2)).let_go()
    kept = [identifier for identifier in newest_first if await registry.sessions.get(identifier) is not None]
    assert kept == newest_first[:2]


async def test_another_session_of_the_same_key_is_not_forgotten_with_an_old_one(mesh: Mesh, registry: Registry) -> None:
    listed = await registered(registry, living(mesh))
    stale = replace(registry.catalogue.all()[0], session_id="ff" * 32)
    await registry.sessions.forget(stale)
    assert await registry.sessions.of(living(mesh)) is not None
    assert await registry.sessions.get(listed.session_id) is not None


async def test_a_session_that_was_let_go_is_in_the_ledger(mesh: Mesh, registry: Registry) -> None:
    listed = await registered(registry, living(mesh))
    document = await registry.sessions.get(listed.session_id)
    (logged,) = [body for kind, body in registry.log.entries if kind is Kind.SESSION]
    assert document is not None
    assert jcs.dumps(logged) == document


async def test_a_lease_whose_session_was_lost_is_renewed_by_registering(mesh: Mesh) -> None:
    """At a registry that knows of the session only what the store says."""
    async with mesh.registry() as first, mesh.registry() as second:
        node = living(mesh)
        listed = await registered(first, node)
        (summary,) = first.catalogue.all()
        await first.sessions.forget(summary)
        first.catalogue._kept.clear()
        with pytest.raises(LeaseUnknown):
            await first.leases.renew(node, OFFER.load, draining=False)
        assert (await second.leases.register(node, OFFER)).session_id == listed.session_id
        await first.leases.renew(node, OFFER.load, draining=False)


async def test_a_bucket_that_is_another_before_anybody_looked_is_read_anew(mesh: Mesh, registry: Registry) -> None:
    await registered(registry, living(mesh))
    await registry.delete_buckets()
    await make_store(registry.link, PATIENCE_SECONDS).sessions.put("key.new", b"", 0)
    await until(lambda: not registry.catalogue.all())


@pytest.mark.parametrize("key", ["about.nonsense", "about." + "aa" * 32])
async def test_a_summary_that_no_registry_wrote_is_passed_over(mesh: Mesh, registry: Registry, key: str) -> None:
    await registry.store.sessions.put(key, b'{"v":9}', 0)
    await registered(registry, living(mesh))
    assert len(ids(registry)) == 1


async def test_what_lies_under_a_summary_is_not_let_go_with_a_malformed_one(mesh: Mesh, registry: Registry) -> None:
    listed = await registered(registry, living(mesh))
    key = SUMMARY_PREFIX + listed.session_id
    stored = await registry.store.sessions.get(key)
    assert stored is not None
    await registry.store.sessions.put(key, b"garbage", stored.revision)
    await until(lambda: listed.session_id not in registry.catalogue)
    await registry.leases.renew(living(mesh), OFFER.load, draining=False)
    assert await registry.sessions.get(listed.session_id) is not None
