"""It is responsible for the registry's state in JetStream key-value buckets, written with optimistic concurrency.

Nothing here is trusted by those who read it: nodes are appraised by every router, sessions are content-addressed,
tenant records are signed. Losing the store loses leases, which heartbeats bring back.
"""

from __future__ import annotations

from dataclasses import dataclass

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig, StorageType
from nats.js.kv import KeyValue

from libs.errors import Code, MeshError

_MAX_VALUE_BYTES = 900_000


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


class Bucket:
    """One bucket."""

    def __init__(self, kv: KeyValue) -> None:
        self.kv = kv

    async def get(self, key: str) -> Versioned | None:
        """Raises `StoreUnavailable`."""
        try:
            entry = await self.kv.get(key)
        except nats.js.errors.KeyNotFoundError:
            return None
        except (nats.errors.Error, OSError) as error:
            raise StoreUnavailable(f"the key-value store does not answer: {error}") from error
        return Versioned(entry.value or b"", entry.revision or 0)

    async def put(self, key: str, value: bytes, revision: int) -> None:
        """Replace revision `revision`; 0 means that there must be none. Raises `StoreConflict`, `StoreUnavailable`."""
        try:
            if revision == 0:
                await self.kv.create(key, value)
            else:
                await self.kv.update(key, value, last=revision)
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise StoreConflict(f"{key} was changed meanwhile") from error
        except (nats.errors.Error, OSError) as error:
            raise StoreUnavailable(f"the key-value store does not answer: {error}") from error

    async def delete(self, key: str) -> None:
        """Raises `StoreUnavailable`."""
        try:
            await self.kv.delete(key)
        except (nats.errors.Error, OSError) as error:
            raise StoreUnavailable(f"the key-value store does not answer: {error}") from error


@dataclass(frozen=True, slots=True)
class Store:
    """The registry's three buckets."""

    providers: Bucket
    sessions: Bucket
    tenants: Bucket


async def open_store(client: Client, timeout_seconds: float) -> Store:
    """Open the buckets, making those that are missing. Raises `StoreUnavailable`."""
    jetstream = client.jetstream(timeout=timeout_seconds)
    return Store(
        providers=await _bucket(jetstream, "registry_providers"),
        sessions=await _bucket(jetstream, "registry_sessions"),
        tenants=await _bucket(jetstream, "registry_tenants"),
    )


async def _bucket(jetstream: JetStreamContext, name: str) -> Bucket:
    try:
        try:
            return Bucket(await jetstream.key_value(name))
        except nats.js.errors.BucketNotFoundError:
            configuration = KeyValueConfig(
                bucket=name, history=1, max_value_size=_MAX_VALUE_BYTES, storage=StorageType.FILE
            )
            return Bucket(await jetstream.create_key_value(configuration))
    except (nats.errors.Error, OSError) as error:
        raise StoreUnavailable(f"the key-value store does not answer: {error}") from error
