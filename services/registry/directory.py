"""It is responsible for the registry's view of all nodes: what the store holds now, and every change to it, in order.

The view is fed by the store alone, never by this process's own writes, so any number of registries show the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import nats.errors
import structlog

from libs.errors import Code, MeshError
from services.registry.providers import Provider, ProviderRecordMalformed, decode
from services.registry.store import Bucket, StoreConflict, StoreUnavailable

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


@dataclass(frozen=True, slots=True)
class _Listed:
    """A provider, and the revision of the record that says so."""

    provider: Provider
    revision: int


class Directory:
    """All providers with a live lease."""

    def __init__(self, bucket: Bucket, clock: Callable[[], float] = time.time) -> None:
        self._bucket = bucket
        self._clock = clock
        self._listed: dict[str, _Listed] = {}
        self._sequence = 0
        self._watchers: set[asyncio.Queue[Change | None]] = set()
        self.synchronised = asyncio.Event()

    def all(self) -> list[Provider]:
        """Providers with a live lease, in order of their SPIFFE ID."""
        now = self._clock() * 1000
        live = (listed.provider for listed in self._listed.values() if listed.provider.lease_until_ms > now)
        return sorted(live, key=lambda provider: provider.spiffe_id)

    @property
    def sequence(self) -> int:
        """Grows with every change, also when the store was lost and numbers its revisions from the start."""
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
            await self.delete_expired()

    async def delete_expired(self) -> None:
        """Delete the leases that have run out by now, unless one was renewed and this view does not know it yet."""
        now = self._clock() * 1000
        for spiffe_id, listed in list(self._listed.items()):
            if listed.provider.lease_until_ms <= now:
                try:
                    await self._bucket.delete(key_of(spiffe_id), listed.revision)
                except (StoreConflict, StoreUnavailable) as error:
                    log.warning("a lease that ran out is still stored", node=spiffe_id, reason=error.reason)

    async def _follow_once(self) -> None:
        connections = self._bucket.connections
        watcher = await self._bucket.watch()
        try:
            seen: set[str] = set()
            while True:
                if self._bucket.connections != connections:
                    return
                try:
                    # Not `updates`, whose `wait_for` may lose a cancellation that comes together with an entry.
                    async with asyncio.timeout(_POLL_SECONDS):
                        entry: Any = await anext(watcher)
                except TimeoutError:
                    continue
                if entry is None:  # The end of what was stored when the watch began.
                    self._forget_except(seen)
                    self.synchronised.set()
                    continue
                if (spiffe_id := self._apply(entry.key, entry.value, entry.operation, entry.revision or 0)) is not None:
                    seen.add(spiffe_id)
        finally:
            # On a connection that is gone there is nothing to stop, and no reason to forget why this ends.
            with suppress(nats.errors.Error):
                await watcher.stop()  # type: ignore[no-untyped-call]

    def _apply(self, key: str, value: bytes | None, operation: str | None, revision: int) -> str | None:
        """Take one entry; return the SPIFFE ID that it is about when it is a live one."""
        if operation is not None or not value:
            self._end_key(key)
            return None
        try:
            provider = decode(value)
        except ProviderRecordMalformed as error:
            log.error("a stored provider is passed over", key=key, detail=str(error))
            self._end_key(key)
            return None
        self._listed[provider.spiffe_id] = _Listed(provider, revision)
        self._tell(provider.spiffe_id, provider)
        return provider.spiffe_id

    def _end_key(self, key: str) -> None:
        gone = next((name for name in self._listed if key_of(name) == key), None)
        if gone is not None:
            self._end(gone)

    def _forget_except(self, seen: set[str]) -> None:
        for spiffe_id in set(self._listed) - seen:
            self._end(spiffe_id)

    def _end(self, spiffe_id: str) -> None:
        del self._listed[spiffe_id]
        self._tell(spiffe_id, None)

    def _tell(self, spiffe_id: str, provider: Provider | None) -> None:
        self._sequence += 1
        change = Change(spiffe_id, provider, self._sequence)
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
