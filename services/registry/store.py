"""It is responsible for the registry's state in JetStream key-value buckets, written with optimistic concurrency.

Nothing here is trusted by those who read it: nodes are appraised by every router, sessions are content-addressed,
tenant records are signed. Losing the store loses leases, which heartbeats bring back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import NoStreamResponseError, NotFoundError
from nats.js.kv import KeyValue

from libs.errors import Code, MeshError
from libs.events.connect import BrokerUnavailable, NatsLink

_MAX_VALUE_BYTES = 900_000
_WRONG_LAST_SEQUENCE = (10071, 10164)
"""The server's error codes for a change of another revision than the last."""


class StoreUnavailable(MeshError):
    """The key-value store does not answer."""

    code = Code.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"


class StoreConflict(MeshError):
    """Somebody else changed the record meanwhile: read it again."""

    code = Code.ABORTED
    reason = "STORE_CONFLICT"


@dataclass(frozen=True, slots=True)
class Versioned:
    """A value and the revision that a change of it must name."""

    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Incarnation:
    """Which bucket of this name it is, and the last revision in it."""

    created: datetime | None
    last: int


class Bucket:
    """One bucket, opened anew on each connection to the broker and made when it is missing."""

    def __init__(self, link: NatsLink, name: str, timeout_seconds: float) -> None:
        self._link = link
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._opened: tuple[int, KeyValue] | None = None

    @property
    def connections(self) -> int:
        """How often a connection was made: a watch begun on an earlier one is dead."""
        return self._link.connections

    async def watch(self, keys: str = ">") -> KeyValue.KeyWatcher:
        """Watch keys, all unless told: what is stored, then None, then changes. Raises `StoreUnavailable`."""
        with self._mapped():
            return await (await self._kv()).watch(keys)

    async def names(self, keys: str) -> list[str]:
        """Return the names of the keys that are stored and match, in order. Raises `StoreUnavailable`."""
        with self._mapped():
            watcher = await (await self._kv()).watch(keys, ignore_deletes=True, meta_only=True)
            try:
                found: list[str] = []
                async with asyncio.timeout(self._timeout_seconds):
                    # None says that this is all there was.
                    async for entry in watcher:
                        if entry is None:
                            break
                        found.append(entry.key)
            finally:
                await watcher.stop()  # type: ignore[no-untyped-call]
        return sorted(found)

    async def incarnation(self) -> Incarnation:
        """Say which bucket this is now. Raises `StoreUnavailable`."""
        with self._mapped():
            info = (await (await self._kv()).status()).stream_info
            return Incarnation(info.created, info.state.last_seq)

    async def get(self, key: str) -> Versioned | None:
        """Raises `StoreUnavailable`."""
        with self._mapped():
            try:
                entry = await (await self._kv()).get(key)
            except nats.js.errors.KeyNotFoundError:
                return None
        return Versioned(entry.value or b"", entry.revision or 0)

    async def put(self, key: str, value: bytes, revision: int) -> None:
        """Replace revision `revision`; 0 means that there must be none. Raises `StoreConflict`, `StoreUnavailable`."""
        with self._mapped():
            kv = await self._kv()
            try:
                await (kv.create(key, value) if revision == 0 else kv.update(key, value, last=revision))
            except nats.js.errors.KeyWrongLastSequenceError as error:
                raise StoreConflict(f"{key} was changed meanwhile") from error

    async def delete(self, key: str, revision: int) -> None:
        """Delete revision `revision`, not a later one. Raises `StoreConflict`, `StoreUnavailable`."""
        with self._mapped():
            kv = await self._kv()
            try:
                await kv.delete(key, last=revision)
            except nats.js.errors.APIError as error:
                if error.err_code not in _WRONG_LAST_SEQUENCE:
                    raise
                raise StoreConflict(f"{key} was changed meanwhile") from error

    async def erase(self, key: str, revision: int) -> None:
        """Remove what a key had up to a revision, without a mark: no watcher hears of it. Raises `StoreUnavailable`."""
        with self._mapped():
            jetstream = await self._link.jetstream(self._timeout_seconds)
            await jetstream.purge_stream(f"KV_{self._name}", seq=revision + 1, subject=f"$KV.{self._name}.{key}")

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """Raise `StoreUnavailable` for whatever fails below; a bucket that is gone is made again by the next use."""
        try:
            yield
        except (nats.errors.Error, OSError, BrokerUnavailable) as error:
            if isinstance(error, nats.errors.NoRespondersError | NoStreamResponseError | NotFoundError):
                self._opened = None
            raise StoreUnavailable(
                f"the key-value store does not answer: {str(error) or type(error).__name__}"
            ) from error

    async def _kv(self) -> KeyValue:
        connections = self._link.connections
        if self._opened is None or self._opened[0] != connections:
            jetstream = await self._link.jetstream(self._timeout_seconds)
            self._opened = (self._link.connections, await _open(jetstream, self._name))
        return self._opened[1]


@dataclass(frozen=True, slots=True)
class Store:
    """The registry's three buckets."""

    providers: Bucket
    sessions: Bucket
    tenants: Bucket


def make_store(link: NatsLink, timeout_seconds: float) -> Store:
    """Name the buckets; each is opened when first used."""
    return Store(
        providers=Bucket(link, "registry_providers", timeout_seconds),
        sessions=Bucket(link, "registry_sessions", timeout_seconds),
        tenants=Bucket(link, "registry_tenants", timeout_seconds),
    )


async def _open(jetstream: JetStreamContext, name: str) -> KeyValue:
    try:
        return await jetstream.key_value(name)
    except nats.js.errors.BucketNotFoundError:
        return await jetstream.create_key_value(
            KeyValueConfig(bucket=name, history=1, max_value_size=_MAX_VALUE_BYTES, storage=StorageType.FILE)
        )
