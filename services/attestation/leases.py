"""It is responsible for the leases that the registry says are live: followed for ever, kept while it is away.

The registry is not trusted: it can hide nodes, and what it says of one is checked where its evidence is fetched. A
lease of which nothing can be judged counts as live, so that the share of those that are covered shows it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.errors import MeshError
from libs.identity.any_peer import Channels
from libs.rpc.errors import remote_errors
from services.attestation.nodes import Listed

_CALL_SECONDS = 5.0
_SILENCE_SECONDS = 30.0
"""A watch carries a heartbeat every 10 s."""

_RETRY_SECONDS = 1.0
_MAX_NODES = 10_000
"""So many are judged. As many again are counted; a registry that lists more is beyond counting."""

_DIGEST_BYTES = 32
_MAX_NAME_BYTES = 256
_MAX_ENDPOINT = 300
MALFORMED = "LEASE_MALFORMED"
TOO_MANY = "TOO_MANY_LEASES"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Lease:
    listed: Listed
    until_ms: int


@dataclass(frozen=True, slots=True)
class _Unsound:
    reason: str
    until_ms: int


class LiveLeases:
    """The registry's nodes, by SPIFFE ID."""

    def __init__(self, registry: Channels, clock: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._unsound: dict[str, _Unsound] = {}
        self._changed = asyncio.Event()
        self.watched = False
        """Whether the watch is alive."""
        self.heard_at = 0.0
        """Unix seconds; 0 for never."""

    @property
    def listed(self) -> Mapping[str, Listed]:
        """Those whose lease has not run out."""
        now_ms = self._clock() * 1000
        return {name: lease.listed for name, lease in self._leases.items() if lease.until_ms > now_ms}

    @property
    def unsound(self) -> Mapping[str, str]:
        """Leases that have not run out either, of which nothing can be judged: why."""
        now_ms = self._clock() * 1000
        return {name: lease.reason for name, lease in self._unsound.items() if lease.until_ms > now_ms}

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
                before, self._leases, self._unsound = self._leases, {}, {}
                for provider in event.snapshot.providers:
                    new |= self._list(provider, before)
            case "changed":
                new = self._take_changed(event.changed)
            case "ended":
                self._take_ended(event.ended)
            case "changes":
                for provider in event.changes.changed:
                    new |= self._take_changed(provider)
                for spiffe_id in event.changes.ended:
                    self._take_ended(spiffe_id)
        if new:
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def _take_changed(self, provider: registry_pb2.Provider) -> bool:
        if self._may_lack_room(_name(provider.spiffe_id)):
            self._forget_past()
        return self._list(provider, self._leases)

    def _take_ended(self, spiffe_id: str) -> None:
        self._leases.pop(_name(spiffe_id), None)
        self._unsound.pop(_name(spiffe_id), None)

    async def _watch(self) -> None:
        channel = await self._registry.channel(_CALL_SECONDS)
        call = registry_pb2_grpc.ProviderRegistryServiceStub(channel).Watch(registry_pb2.WatchRequest())
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
            # The next watch is to be another instance's, where there is one.
            channel.is_away = True
        finally:
            call.cancel()

    def _list(self, provider: registry_pb2.Provider, before: Mapping[str, _Lease]) -> bool:
        """Take a lease; say whether there is something else to judge than before."""
        name = _name(provider.spiffe_id)
        earlier = before.get(name)
        self._leases.pop(name, None)
        told = self._unsound.pop(name, None)
        if (reason := self._unfit(provider)) is not None:
            if told is None or told.reason != reason:
                log.error("the registry lists a node that cannot be judged", node=name, reason=reason)
            if len(self._unsound) < _MAX_NODES:
                self._unsound[name] = _Unsound(reason, provider.lease_until_ms)
            return False
        listed = Listed(name, provider.endpoint, provider.evidence_digest, provider.spki_sha256)
        self._leases[name] = _Lease(listed, provider.lease_until_ms)
        return earlier is None or earlier.listed != listed

    def _unfit(self, provider: registry_pb2.Provider) -> str | None:
        if (
            not len(provider.evidence_digest) == len(provider.spki_sha256) == _DIGEST_BYTES
            or _name(provider.spiffe_id) != provider.spiffe_id
            or len(provider.endpoint) > _MAX_ENDPOINT
        ):
            return MALFORMED
        return TOO_MANY if len(self._leases) >= _MAX_NODES else None

    def _may_lack_room(self, name: str) -> bool:
        """Whether a lease of that name comes on top where the most are kept already; it may turn out sound or not."""
        return any(len(kept) >= _MAX_NODES and name not in kept for kept in (self._leases, self._unsound))

    def _forget_past(self) -> None:
        now_ms = self._clock() * 1000
        self._leases = {name: lease for name, lease in self._leases.items() if lease.until_ms > now_ms}
        self._unsound = {name: lease for name, lease in self._unsound.items() if lease.until_ms > now_ms}


def _name(spiffe_id: str) -> str:
    """As much of a name as is kept and told."""
    return spiffe_id.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
