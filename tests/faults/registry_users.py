"""Those who use a registry while it dies: nodes that keep themselves listed, watchers that must all see the same."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from teemesh.registry.v1 import registry_pb2 as pb
from teemesh.registry.v1 import registry_pb2_grpc as pb_grpc

from libs import jcs
from libs.errors import MeshError
from libs.identity.any_peer import AnyPeer
from libs.identity.gpu_watch import GpuSettings
from libs.identity.member import Member
from libs.rpc.errors import remote_errors
from services.devtee.machine import VirtualTd
from services.node.engine import EngineLoad
from services.node.registration import Registration, ServedModel, keep_registered
from tests.fakes.leases import MODEL, WEIGHTS
from tests.faults.registry_processes import RegistryMesh

_GPUS = GpuSettings()
_CALL_SECONDS = 5.0
_SILENCE_SECONDS = 15.0
"""The registry gives a sign of life every ten."""
_AGAIN_SECONDS = 0.2
_REMEMBERED = 4096

Position = tuple[str, int]


class Idle:
    """An engine that has nothing to do."""

    ready = True
    load = EngineLoad(running=0, waiting=0, capacity=4, kv_cache_permille=None)

    async def until_ready(self) -> None:
        return

    async def until_away(self) -> None:
        await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class Listed:
    """A node that is registered, and registers again, for as long as the load runs."""

    member: Member
    td: VirtualTd

    @property
    def spiffe_id(self) -> str:
        return self.member.spiffe_id


@asynccontextmanager
async def listed_node(
    registry: RegistryMesh, instance: str, td: VirtualTd, *, attestation: str = "", gpus: GpuSettings = _GPUS
) -> AsyncIterator[Listed]:
    """The node's own code for being found, on real evidence, without an engine behind it."""
    claims = {"models": [{"id": MODEL, "weights_sha256": WEIGHTS}], "engine": "embedded/1"}
    async with (
        registry.joined("node", instance, claims, td, attestation=attestation, gpus=gpus) as member,
        member.serve([]) as running,
        asyncio.TaskGroup() as tasks,
    ):
        peer = member.any_peer("registry", registry.addresses)
        registration = Registration(
            peer=peer,
            endpoint=f"127.0.0.1:{running.port}",
            models=[ServedModel(MODEL, bytes.fromhex(WEIGHTS))],
            busyness=Idle(),
            gpus=member.gpus,
            key=lambda: peer.credential.certificate.spki_sha256,
        )
        keeping = tasks.create_task(keep_registered(registration, renew_seconds=registry.lease_seconds / 3))
        try:
            yield Listed(member, td)
        finally:
            keeping.cancel()


@dataclass(slots=True)
class Watcher:
    """Holds the state that the registry's watch makes, whichever instance it comes from."""

    registry: AnyPeer
    state: dict[str, pb.Provider] = field(default_factory=dict)
    position: Position = ("", 0)
    is_level: bool = False
    """Whether this watch has caught up: the registry has named the digest of the state since it began."""
    digests: dict[Position, str] = field(default_factory=dict)
    """What it held at each position while it was level, the oldest forgotten."""
    counted: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    heard: Callable[[pb.Provider], None] = lambda provider: None
    """Told of every provider that a registry lists."""

    async def follow(self) -> None:
        """Watch for ever, from where the last watch ended."""
        while True:
            try:
                await self._watch()
            except MeshError as error:
                self.counted[error.reason] += 1
            except TimeoutError:
                self.counted["silence"] += 1
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _watch(self) -> None:
        stub = pb_grpc.ProviderRegistryServiceStub(await self.registry.channel(_CALL_SECONDS))
        epoch, sequence = self.position
        call = stub.Watch(pb.WatchRequest(epoch=epoch, sequence=sequence))
        begun = self.is_level = False
        try:
            while True:
                with remote_errors():
                    async with asyncio.timeout(_SILENCE_SECONDS):
                        event = await call.read()
                if not isinstance(event, pb.WatchResponse):
                    return
                if not begun:
                    self.counted["snapshots" if event.HasField("snapshot") else "resumed"] += 1
                    begun = True
                self.take(event)
        finally:
            call.cancel()

    def take(self, event: pb.WatchResponse) -> None:
        self.counted["events"] += 1
        told: bytes | None = None
        match event.WhichOneof("event"):
            case "snapshot":
                self.state = {provider.spiffe_id: provider for provider in event.snapshot.providers}
                told = event.snapshot.state_digest
                for provider in event.snapshot.providers:
                    self.heard(provider)
            case "changed":
                self._change([event.changed], [])
            case "ended":
                self._change([], [event.ended])
            case "changes":
                self._change(event.changes.changed, event.changes.ended)
            case "heartbeat":
                told = event.heartbeat.state_digest
        self._settle((event.epoch, event.sequence), told)

    def _change(self, changed: Iterable[pb.Provider], ended: Iterable[str]) -> None:
        for provider in changed:
            self.state[provider.spiffe_id] = provider
            self.heard(provider)
        for gone in ended:
            self.state.pop(gone, None)

    def _settle(self, position: Position, told: bytes | None) -> None:
        if position[0] == self.position[0] and position[1] < self.position[1]:
            self.wrong.append(f"a watch went back from {self.position} to {position}")
        self.position = position
        digest = digest_of(self.state)
        if told is not None:
            self.counted["compared"] += 1
            if told.hex() != digest:
                self.wrong.append(f"at {position} a watcher holds {digest}, the registry {told.hex()}")
            self.is_level = True
        if not self.is_level:
            return
        self.digests[position] = digest
        if len(self.digests) > _REMEMBERED:
            self.digests.pop(next(iter(self.digests)))


def digest_of(state: dict[str, pb.Provider]) -> str:
    """As `Heartbeat` in registry.proto says."""
    described: list[dict[str, Any]] = [
        {
            "draining": provider.draining,
            "drained_by": provider.drained_by,
            "endpoint": provider.endpoint,
            "lease_until_ms": provider.lease_until_ms,
            "running": provider.load.running_requests,
            "session_id": provider.session_id.hex(),
            "spiffe_id": provider.spiffe_id,
            "spki_sha256": provider.spki_sha256.hex(),
            "waiting": provider.load.waiting_requests,
        }
        for _, provider in sorted(state.items())
    ]
    return hashlib.sha256(jcs.dumps(described)).hexdigest()


def ends_at(watchers: Sequence[Watcher], spiffe_id: str) -> float:
    """Until when a node's lease lasts, by the best that any watcher knows; Unix seconds, 0 for none."""
    found = [watcher.state[spiffe_id].lease_until_ms for watcher in watchers if spiffe_id in watcher.state]
    return max(found, default=0) / 1000
