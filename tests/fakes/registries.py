"""Registries on a real store: one nats-server, any number of registries."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from nats.js.errors import NotFoundError

from libs.events.connect import NatsLink, connect_nats
from libs.events.outbox import OutboxFull
from libs.events.publish import Publisher
from libs.transparency.leaf import Kind
from services.registry.admissions import Admissions
from services.registry.catalogue import Catalogue, Retention
from services.registry.directory import Alive, Changes, Directory, Event, Snapshot
from services.registry.drains import Drains
from services.registry.leases import NodeLeases
from services.registry.sessions import Sessions
from services.registry.store import Store, make_store
from services.registry.view import Change, Position
from services.registry.watch import watch
from tests.fakes.entry_schema import require_documented
from tests.fakes.leases import TRUST_DOMAIN
from tests.fakes.let_in import LetIn
from tests.fakes.nats_broker import NatsBroker, nats_broker
from tests.fakes.throwaway_ca import ThrowawayCa

LEASE_SECONDS = 15.0
RETENTION = Retention(seconds=86_400.0, octets=1_000_000)
PATIENCE_SECONDS = 20.0

T = TypeVar("T", Snapshot, Change, Alive)


class Log:
    """A ledger's outbox: keeps what is enqueued, unless it is full."""

    def __init__(self) -> None:
        self.entries: list[tuple[Kind, Mapping[str, Any]]] = []
        self.full = False

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: None) -> None:
        require_documented(kind, body)
        if self.full:
            raise OutboxFull("no room")
        self.entries.append((kind, body))

    def kinds(self) -> list[Kind]:
        return [kind for kind, _ in self.entries]


@dataclass(slots=True)
class Registry:
    """One registry's parts. Its clock is the test's."""

    store: Store
    directory: Directory
    leases: NodeLeases
    drains: Drains
    sessions: Sessions
    catalogue: Catalogue
    admissions: Admissions
    log: Log
    link: NatsLink

    async def delete_buckets(self) -> None:
        """Lose all that is stored, while everything runs."""
        jetstream = await self.link.jetstream(PATIENCE_SECONDS)
        for bucket in ("registry_providers", "registry_sessions", "registry_tenants"):
            with suppress(NotFoundError):
                await jetstream.delete_key_value(bucket)


@dataclass(slots=True)
class Mesh:
    broker: NatsBroker
    tls: Callable[[], ssl.SSLContext]
    now: float = field(default=1_800_000_000.0)

    @asynccontextmanager
    async def registry(self, lease_seconds: float = LEASE_SECONDS) -> AsyncIterator[Registry]:
        """A registry whose directory follows the store."""
        async with connect_nats(
            self.broker.url,
            LetIn(self.tls),
            server_name="broker.mesh.test",
            name="registry/one",
            inbox_prefix="_INBOX_registry",
        ) as link:
            store, log = make_store(link, 10.0), Log()
            sessions = Sessions(store.sessions)
            admissions = Admissions(cast(Publisher, log), lambda: 1)
            directory = Directory(store.providers, TRUST_DOMAIN, clock=lambda: self.now)
            catalogue = Catalogue(store.sessions, sessions, directory.sessions, RETENTION, clock=lambda: self.now)
            leases = NodeLeases(
                store.providers,
                sessions,
                catalogue,
                admissions,
                lease_seconds,
                clock=lambda: self.now,
                known=directory.stored,
            )
            following = asyncio.gather(directory.follow(), catalogue.follow())
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await directory.synchronised.wait()
                    await catalogue.synchronised.wait()
                drains = Drains(store.providers, TRUST_DOMAIN, clock=lambda: self.now)
                yield Registry(store, directory, leases, drains, sessions, catalogue, admissions, log, link)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the store will have told a registry."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - not all of it is announced
            await asyncio.sleep(0.01)


class Watching:
    """Reads a watch."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._events = events
        self._together: deque[Change] = deque()

    async def next(self, kind: type[T]) -> T:
        """The next event, signs of life left out unless one is asked for; it must be of this kind.

        Changes that came together are taken one by one.
        """
        async with asyncio.timeout(PATIENCE_SECONDS):
            event: Event = self._together.popleft() if self._together else await anext(self._events)
            while isinstance(event, Alive) and kind is not Alive:
                event = await anext(self._events)
        if isinstance(event, Changes):
            self._together.extend(event.changes)
            event = self._together.popleft()
        assert isinstance(event, kind)
        return event


@asynccontextmanager
async def watching(directory: Directory, known: Position | None = None) -> AsyncIterator[Watching]:
    async with aclosing(watch(directory, known)) as events:
        yield Watching(events)


@asynccontextmanager
async def registry_mesh(folder: Path) -> AsyncIterator[Mesh]:
    """A broker for registries."""
    ca = ThrowawayCa(folder)
    files = ca.issue("registry.mesh.test", "registry")
    async with nats_broker(folder, ca) as broker:
        yield Mesh(broker, lambda: ca.client_context(files))
