"""It is responsible for the leases that the registry says are live: followed for ever, kept while it is away.

The registry is not trusted: it can hide nodes, and what it says of one is checked where its evidence is fetched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.errors import MeshError
from libs.identity.peers import Peer
from libs.rpc.errors import remote_errors
from services.attestation.nodes import Listed

_CALL_SECONDS = 5.0
_SILENCE_SECONDS = 30.0
"""A watch carries a heartbeat every 10 s."""

_RETRY_SECONDS = 1.0
_MAX_NODES = 10_000
_DIGEST_BYTES = 32

log = structlog.get_logger()


class LiveLeases:
    """The registry's nodes, by SPIFFE ID."""

    def __init__(self, registry: Peer, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._clock = clock
        self._providers: dict[str, registry_pb2.Provider] = {}
        self._changed = asyncio.Event()
        self.watched = False
        """Whether the watch is alive."""
        self.heard_at = 0.0
        """Unix seconds; 0 for never."""

    @property
    def listed(self) -> Mapping[str, Listed]:
        """Those whose lease has not run out."""
        now_ms = self._clock() * 1000
        return {
            name: Listed(name, provider.endpoint, provider.evidence_digest, provider.spki_sha256)
            for name, provider in self._providers.items()
            if provider.lease_until_ms > now_ms
        }

    async def changed(self) -> None:
        """Wait until a lease is new, or rests on something else."""
        await self._changed.wait()

    async def follow(self) -> None:
        """Follow the registry for ever."""
        while True:
            try:
                await self._watch()
            except MeshError as error:
                log.warning("no watch on the registry", reason=error.reason, detail=str(error))
            finally:
                self.watched = False
            await asyncio.sleep(_RETRY_SECONDS)

    def take(self, event: registry_pb2.WatchResponse) -> None:
        """Take the registry's word on which leases there are."""
        self.heard_at = self._clock()
        new = False
        match event.WhichOneof("event"):
            case "snapshot":
                before, self._providers = self._providers, {}
                for provider in event.snapshot.providers:
                    new |= self._list(provider, before.get(provider.spiffe_id))
            case "changed":
                new = self._list(event.changed, self._providers.get(event.changed.spiffe_id))
            case "ended":
                self._providers.pop(event.ended, None)
        if new:
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def _watch(self) -> None:
        stub = registry_pb2_grpc.ProviderRegistryServiceStub(await self._registry.channel(_CALL_SECONDS))
        call = stub.Watch(registry_pb2.WatchRequest())
        try:
            while True:
                with remote_errors():
                    async with asyncio.timeout(_SILENCE_SECONDS):
                        event = await call.read()
                if not isinstance(event, registry_pb2.WatchResponse):
                    return  # The end of the stream.
                self.take(event)
                self.watched = True
        except TimeoutError:
            log.warning("the registry's watch fell silent")
        finally:
            call.cancel()

    def _list(self, provider: registry_pb2.Provider, before: registry_pb2.Provider | None) -> bool:
        """Take a lease; say whether it rests on something else than before."""
        sound = len(provider.evidence_digest) == len(provider.spki_sha256) == _DIGEST_BYTES
        if not sound or (len(self._providers) >= _MAX_NODES and provider.spiffe_id not in self._providers):
            log.error("the registry lists a node that is passed over", node=provider.spiffe_id[:256])
            return False
        self._providers[provider.spiffe_id] = provider
        return before is None or _rests_on(before) != _rests_on(provider)


def _rests_on(provider: registry_pb2.Provider) -> tuple[str, bytes, bytes]:
    return provider.endpoint, provider.evidence_digest, provider.spki_sha256
