"""Registries on a real store: one nats-server, any number of registries."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from libs.events.connect import connect_nats
from libs.events.outbox import OutboxFull
from libs.events.publish import Publisher
from libs.transparency.leaf import Kind
from services.registry.admissions import Admissions
from services.registry.directory import Change, Directory
from services.registry.leases import NodeLeases
from services.registry.sessions import Sessions
from services.registry.store import Store, make_store
from services.registry.watch import Alive, Snapshot, watch
from tests.fakes.let_in import LetIn
from tests.fakes.nats_broker import NatsBroker, nats_broker
from tests.fakes.throwaway_ca import ThrowawayCa

LEASE_SECONDS = 15.0
PATIENCE_SECONDS = 20.0

T = TypeVar("T", Snapshot, Change)


class Log:
    """A ledger's outbox: keeps what is enqueued, unless it is full."""

    def __init__(self) -> None:
        self.entries: list[tuple[Kind, Mapping[str, Any]]] = []
        self.full = False

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: None) -> None:
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
    sessions: Sessions
    log: Log


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
            directory = Directory(store.providers, clock=lambda: self.now)
            leases = NodeLeases(
                store.providers,
                sessions,
                Admissions(cast(Publisher, log)),
                lease_seconds,
                clock=lambda: self.now,
            )
            following = asyncio.create_task(directory.follow())
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await directory.synchronised.wait()
                yield Registry(store, directory, leases, sessions, log)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


class Watching:
    """Reads a watch."""

    def __init__(self, events: AsyncGenerator[Snapshot | Change | Alive, None]) -> None:
        self._events = events

    async def next(self, kind: type[T]) -> T:
        """The next event, signs of life left out; it must be of this kind."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while isinstance(event := await anext(self._events), Alive):
                pass
        assert isinstance(event, kind)
        return event


@asynccontextmanager
async def watching(directory: Directory) -> AsyncIterator[Watching]:
    async with aclosing(watch(directory)) as events:
        yield Watching(events)


@asynccontextmanager
async def registry_mesh(folder: Path) -> AsyncIterator[Mesh]:
    """A broker for registries."""
    ca = ThrowawayCa(folder)
    files = ca.issue("registry.mesh.test", "registry")
    async with nats_broker(folder, ca) as broker:
        yield Mesh(broker, lambda: ca.client_context(files))
