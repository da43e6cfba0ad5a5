"""Responsible for the load on a registry: nodes that renew their leases on time, and watchers that note what they hear.

Each node has a key, a certificate, evidence, a lease and a connection of its own. All share this process, one virtual
TD, which made the evidence, and the watchers share one router's certificate. So what is measured of the registry is
whole, and the clients' share of the time is no more than their part of this process.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.registry.v1 import registry_pb2 as pb
from teemesh.registry.v1 import registry_pb2_grpc

from libs.identity.certificate import Subject, key_pem, pem_of
from libs.rpc.channel import open_channel
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore

MODEL, WEIGHTS = "smollm2-135m", "77" * 32
RENEW_SECONDS = 5.0
_CLAIMS = {
    "engine": "embedded/1",
    "engine_args_sha256": "00" * 32,
    "models": [{"id": MODEL, "weights_sha256": WEIGHTS}],
    "gpu_evidence_sha256": None,
}
_SECONDS = 30.0
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Bearer:
    """A key and a certificate of the mesh CA, with the evidence that it names."""

    spiffe_id: str
    key: bytes = field(repr=False)
    certificate: bytes
    evidence: bytes = field(repr=False)
    spki_sha256: bytes

    @classmethod
    def make(cls, mesh: JoinedMesh, kms: KmsCore, role: str, instance: str) -> Bearer:
        key = ec.generate_private_key(ec.SECP256R1())
        evidence = mesh.evidence(role, kms.challenges.issue("certificate"), key, claims=_CLAIMS)
        subject = Subject(TRUST_DOMAIN, role, instance, evidence.digest)
        certificate = kms.ca.issue_svid(subject, key.public_key(), time.time())
        spki_sha256 = hashlib.sha256(evidence.spki).digest()
        return cls(subject.spiffe_id, key_pem(key), pem_of(certificate), evidence.document, spki_sha256)

    def channel(self, target: str, ca_pem: bytes) -> grpc.aio.Channel:
        return open_channel(
            target,
            root_pem=ca_pem,
            server_name=f"registry.{TRUST_DOMAIN}",
            key_pem=self.key,
            certificate_pem=self.certificate,
        )


@dataclass(slots=True)
class Heard:
    """When what was sent reached each watcher. A renewal is told by its number, which stands in the load."""

    sent: dict[int, float] = field(default_factory=dict)
    taken: list[float] = field(default_factory=list)
    """Seconds from the call on, of every renewal at every watcher."""
    calls: list[float] = field(default_factory=list)
    """Seconds that the node's own call took."""
    failed: int = 0
    measuring: bool = False

    def next(self) -> int:
        number = len(self.sent) + 1
        self.sent[number] = time.perf_counter()
        return number

    def take(self, provider: pb.Provider) -> None:
        if self.measuring and (sent := self.sent.get(provider.load.waiting_requests)) is not None:
            self.taken.append(time.perf_counter() - sent)


class Fleet:
    """Nodes and watchers of one registry."""

    def __init__(self, target: str, ca_pem: bytes, registry_spki_sha256: bytes, heard: Heard) -> None:
        self._target = target
        self._registry_spki_sha256 = registry_spki_sha256
        self._ca_pem = ca_pem
        self.heard = heard
        self.streams: set[asyncio.Task[float]] = set()
        """One for each node: gives when it ended."""

    @asynccontextmanager
    async def running(self, nodes: list[Bearer], router: Bearer, watchers: int, *, leased: bool) -> AsyncIterator[None]:
        """Register all nodes and renew them; `leased`: present evidence first, and hold the stream of renewals."""
        at_once = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            registered = [asyncio.Event() for _ in nodes]
            lives = [
                tasks.create_task(self._live(node, number / len(nodes), registered[number], at_once, leased))
                for number, node in enumerate(nodes)
            ]
            for each in registered:
                await each.wait()
            synchronised = [asyncio.Event() for _ in range(watchers)]
            lives += [tasks.create_task(self._watch(router, each, leased)) for each in synchronised]
            for each in synchronised:
                await each.wait()
            yield
            for task in (*lives, *self.streams):
                task.cancel()

    async def _live(
        self, node: Bearer, phase: float, registered: asyncio.Event, at_once: asyncio.Semaphore, leased: bool
    ) -> None:
        async with node.channel(self._target, self._ca_pem) as channel:
            stub = registry_pb2_grpc.ProviderRegistryServiceStub(channel)
            async with at_once:
                if leased:
                    await _present(channel, node)
                models = [pb.Model(id=MODEL, weights_sha256=bytes.fromhex(WEIGHTS))]
                request = pb.RegisterRequest(endpoint="127.0.0.1:1", models=models, load=pb.Load(capacity=4))
                await stub.Register(request, timeout=_SECONDS)
                if leased:
                    self.streams.add(asyncio.create_task(_held(channel, self._registry_spki_sha256)))
            registered.set()
            while True:
                await asyncio.sleep((phase * RENEW_SECONDS - time.monotonic()) % RENEW_SECONDS)
                await self._renew(stub)

    async def _renew(self, stub: registry_pb2_grpc.ProviderRegistryServiceStub) -> None:
        number = self.heard.next()
        began = time.perf_counter()
        try:
            await stub.Renew(pb.RenewRequest(load=pb.Load(capacity=4, waiting_requests=number)), timeout=_SECONDS)
        except grpc.aio.AioRpcError:
            self.heard.failed += 1
        else:
            if self.heard.measuring:
                self.heard.calls.append(time.perf_counter() - began)

    async def _watch(self, router: Bearer, synchronised: asyncio.Event, leased: bool) -> None:
        async with router.channel(self._target, self._ca_pem) as channel:
            if leased:
                await _present(channel, router)
            call = registry_pb2_grpc.ProviderRegistryServiceStub(channel).Watch(pb.WatchRequest())
            try:
                while isinstance(event := await call.read(), pb.WatchResponse):
                    synchronised.set()
                    for provider in (event.changed, *event.changes.changed):
                        self.heard.take(provider)
                raise RuntimeError("the registry ended a watch")
            finally:
                call.cancel()


async def _present(channel: grpc.aio.Channel, bearer: Bearer) -> None:
    request = evidence_pb2.PresentEvidenceRequest(document=bearer.evidence)
    await evidence_pb2_grpc.EvidenceServiceStub(channel).PresentEvidence(request, timeout=_SECONDS)


async def _held(channel: grpc.aio.Channel, registry_spki_sha256: bytes) -> float:
    """Hold the stream that rests on the node's lease, as every client of a mesh service does; return when it ended."""
    request = evidence_pb2.WatchRenewalsRequest(spki_sha256=registry_spki_sha256)
    call = evidence_pb2_grpc.EvidenceServiceStub(channel).WatchRenewals(request)
    try:
        while isinstance(await call.read(), evidence_pb2.WatchRenewalsResponse):
            pass
    except grpc.aio.AioRpcError:
        pass
    finally:
        call.cancel()
    return time.perf_counter()
