"""It is responsible for the registry's view of all nodes: what the store holds now, and every change to it, in order.

The view is fed by the store alone, never by this process's own writes, so any number of registries show the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import nats.errors
import structlog

from libs.errors import Code, MeshError
from services.registry.providers import Provider, ProviderRecordMalformed, decode
from services.registry.store import Bucket, StoreUnavailable

_POLL_SECONDS = 1.0
_MAX_BACKLOG = 1024

log = structlog.get_logger()


class WatcherTooSlow(MeshError):
    """The watcher does not read fast enough: watch again from a new snapshot."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "WATCHER_TOO_SLOW"


@dataclass(frozen=True, slots=True)
class Change:
    """A provider that is new or changed, or (None) one that is gone, by its SPIFFE ID."""

    spiffe_id: str
    provider: Provider | None
    sequence: int


class Directory:
    """All providers with a live lease."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._providers: dict[str, Provider] = {}
        self._sequence = 0
        self._watchers: set[asyncio.Queue[Change | None]] = set()
        self.synchronised = asyncio.Event()

    def all(self) -> list[Provider]:
        """Providers with a live lease, in order of their SPIFFE ID."""
        now = time.time() * 1000
        return sorted((p for p in self._providers.values() if p.lease_until_ms > now), key=lambda p: p.spiffe_id)

    def of(self, spiffe_id: str) -> Provider | None:
        return self._providers.get(spiffe_id)

    @property
    def sequence(self) -> int:
        return self._sequence

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Yield every change from now on. Raises `WatcherTooSlow`."""
        queue: asyncio.Queue[Change | None] = asyncio.Queue(_MAX_BACKLOG)
        self._watchers.add(queue)
        try:
            while (change := await queue.get()) is not None:
                yield change
            raise WatcherTooSlow("watch again: this watcher fell too far behind")
        finally:
            self._watchers.discard(queue)

    async def follow(self) -> None:
        """Follow the store for ever; a broken watch or a reconnected broker starts from a whole reading."""
        while True:
            try:
                await self._follow_once()
            except (nats.errors.Error, StoreUnavailable, OSError) as error:
                log.warning("the store's watch broke", detail=str(error))
                await asyncio.sleep(_POLL_SECONDS)

    async def end_expired(self) -> None:
        """Delete leases that ran out, for ever."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            now = time.time() * 1000
            for provider in list(self._providers.values()):
                if provider.lease_until_ms <= now:
                    try:
                        await self._bucket.delete(key_of(provider.spiffe_id))
                    except StoreUnavailable as error:
                        log.warning("a lease that ran out is still stored", detail=str(error))

    async def _follow_once(self) -> None:
        watcher = await self._bucket.watch()
        connections = self._bucket.connections
        try:
            seen: set[str] = set()
            while True:
                if self._bucket.connections != connections:
                    return
                try:
                    entry: Any = await watcher.updates(timeout=_POLL_SECONDS)  # type: ignore[no-untyped-call]
                except (nats.errors.TimeoutError, TimeoutError):
                    continue
                if entry is None:  # The end of what was stored when the watch began.
                    self._forget_except(seen)
                    self.synchronised.set()
                    continue
                if (spiffe_id := self._apply(entry.key, entry.value, entry.operation, entry.revision or 0)) is not None:
                    seen.add(spiffe_id)
        finally:
            await watcher.stop()  # type: ignore[no-untyped-call]

    def _apply(self, key: str, value: bytes | None, operation: str | None, revision: int) -> str | None:
        """Take one entry; return the SPIFFE ID that it is about when it is a live one."""
        self._sequence = max(self._sequence, revision)
        if operation is not None or not value:
            gone = next((name for name in self._providers if key_of(name) == key), None)
            if gone is not None:
                del self._providers[gone]
                self._tell(Change(gone, None, revision))
            return None
        try:
            provider = decode(value)
        except ProviderRecordMalformed as error:
            log.error("a stored provider is passed over", key=key, detail=str(error))
            return None
        self._providers[provider.spiffe_id] = provider
        self._tell(Change(provider.spiffe_id, provider, revision))
        return provider.spiffe_id

    def _forget_except(self, seen: set[str]) -> None:
        for spiffe_id in set(self._providers) - seen:
            del self._providers[spiffe_id]
            self._tell(Change(spiffe_id, None, self._sequence))

    def _tell(self, change: Change) -> None:
        for queue in list(self._watchers):
            if queue.full():
                self._watchers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(change)


def key_of(spiffe_id: str) -> str:
    """The store's key for a node: its instance name, which is unique within the role."""
    return "node." + spiffe_id.rpartition("/")[2]
