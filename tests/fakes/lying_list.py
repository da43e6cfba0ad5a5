"""A registry of the right code, with a genuine certificate, that says of nodes whatever it likes; and its victim.

The nodes are members with evidence and listeners of their own. The router's part is the router's own, over real gRPC.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from teemesh.registry.v1 import registry_pb2

from libs import jcs
from libs.aci.endpoints import CHAT
from libs.aci.session import session_id
from libs.identity.authority import Authority, CertificateRequest, Issued
from libs.identity.certificate import Subject
from libs.identity.lease import Lease
from libs.identity.member import Member
from libs.policy.document import Policy
from libs.tee import evidence as evidences
from services.devtee.machine import VirtualTd
from services.devtee.quotes import TD_ATTRIBUTES_DEBUG
from services.kms.ca import public_key_of
from services.kms.issuance import ISSUANCE
from services.registry.sessions import draft_session
from services.router.errors import UpstreamVerificationFailed
from services.router.prompt import Constraints
from services.router.routing.listed import Upstream
from services.router.routing.upstreams import Upstreams
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore
from tests.fakes.leases import MODEL, WEIGHTS
from tests.fakes.ledgers import TENANT
from tests.fakes.registries import until
from tests.fakes.registry_twin import RegistryTwin, registry_twin
from tests.fakes.routers import PATIENCE_SECONDS
from tests.fakes.running_attestation import registry_binding

CLAIMS: Mapping[str, Any] = {
    "engine": "embedded/1",
    "engine_args_sha256": "00" * 32,
    "models": [{"id": MODEL, "weights_sha256": WEIGHTS}],
}


MAX_LISTED = 100
"""So many nodes does this router consider."""


class CarelessKms(KmsCore):
    """Certifies whoever asks and looks at no evidence: what is then refused, the router refuses by itself."""

    @property
    def authority(self) -> Authority:
        return _Careless(self)


@dataclass(frozen=True, slots=True)
class _Careless:
    kms: KmsCore

    async def issue(self, request: CertificateRequest, policy: Policy) -> Issued:
        document = await request.prove(self.kms.challenges.issue(ISSUANCE))
        subject = Subject(TRUST_DOMAIN, "node", request.instance, evidences.parse(document).digest)
        certificate = self.kms.ca.issue_svid(subject, public_key_of(request.csr), time.time())
        return Issued(certificate, self.kms.ca.certificate)


class DebugTd(VirtualTd):
    """The measured code in a TD whose memory the host can read."""

    def quote(self, report_data: bytes, *, td_attributes: bytes = TD_ATTRIBUTES_DEBUG) -> bytes:
        return super().quote(report_data, td_attributes=td_attributes)


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A node on its listener."""

    member: Member
    endpoint: str

    @property
    def spiffe_id(self) -> str:
        return self.member.spiffe_id

    def posing_as(self, honest: Lease) -> Lease:
        """Its own key and evidence, and of both what was found of another."""
        credential = self.member.identity.current
        return replace(honest, certificate=credential.certificate, evidence=credential.evidence)


class NoticingUpstreams(Upstreams):
    """Tells when it has taken the registry's word."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.taken = 0

    def take(self, event: registry_pb2.WatchResponse) -> None:
        super().take(event)
        self.taken += 1


@dataclass(slots=True)
class LyingList:
    """A router that follows the lying registry."""

    mesh: JoinedMesh
    kms: KmsCore
    registry: RegistryTwin
    registry_member: Member
    registry_target: str
    router: Member
    upstreams: NoticingUpstreams
    _running: AsyncExitStack
    _started: int = 0

    async def node(
        self, *, td: VirtualTd | None = None, careless: bool = False, claims: Mapping[str, Any] = CLAIMS
    ) -> RunningNode:
        """Start a node. `careless`: it is certified whatever its evidence says."""
        self._started += 1
        parts = (self.kms.keyring, self.kms.ca, self.kms.challenges, self.kms.policy, self.kms.issuance)
        kms = CarelessKms(*parts) if careless else self.kms
        member = await self._running.enter_async_context(
            self.mesh.member("node", kms, instance=f"n{self._started}", claims=claims, td=td)
        )
        running = await self._running.enter_async_context(member.serve([]))
        return RunningNode(member, f"127.0.0.1:{running.port}")

    async def stop_nodes(self) -> None:
        await self._running.aclose()

    async def appraised(self, node: RunningNode) -> Lease:
        """What an honest registry finds of it."""
        return (await self.registry_member.peer("node", node.endpoint).link(PATIENCE_SECONDS)).lease

    def seal(self, lease: Lease, endpoint: str, **changes: Any) -> bytes:
        """Have a session for this lease and endpoint, some members changed, under the id that is its digest."""
        document = jcs.dumps({**jcs.loads_object(draft_session(lease, endpoint).document), **changes})
        identifier = bytes.fromhex(session_id(document))
        self.registry.sessions[identifier] = document
        return identifier

    def listed(
        self, lease: Lease, endpoint: str, session: bytes | None = None, **changes: Any
    ) -> registry_pb2.Provider:
        """What the registry says of a node; what it does not change is so."""
        provider = registry_pb2.Provider(
            spiffe_id=lease.certificate.spiffe_id,
            endpoint=endpoint,
            models=[registry_pb2.Model(id=MODEL, weights_sha256=bytes.fromhex(WEIGHTS))],
            spki_sha256=lease.certificate.spki_sha256,
            session_id=session or self.seal(lease, endpoint),
            lease_until_ms=int(lease.until * 1000),
            load=registry_pb2.Load(capacity=4),
        )
        for name, value in changes.items():
            setattr(provider, name, value)
        return provider

    async def honestly(self, node: RunningNode) -> registry_pb2.Provider:
        return self.listed(await self.appraised(node), node.endpoint)

    async def say(self, *providers: registry_pb2.Provider) -> None:
        """Stream a list; return when the router has taken it and verified what it would."""
        await self.tell(registry_pb2.WatchResponse(snapshot=registry_pb2.Snapshot(providers=providers)))
        await self.upstreams.verify()

    async def tell(self, *events: registry_pb2.WatchResponse) -> None:
        """Stream events; return when the router has taken them all."""
        until_taken = self.upstreams.taken + len(events)
        for event in events:
            self.registry.events.put_nowait(event)
        await until(lambda: self.upstreams.taken >= until_taken)

    def choose(self) -> Upstream:
        return self.upstreams.choose(MODEL, CHAT, Constraints(), TENANT.tenant_id, frozenset())

    def why_none(self) -> str | None:
        """Why no node may be used; one that may is the test's failure."""
        with pytest.raises(UpstreamVerificationFailed) as refused:
            self.choose()
        return refused.value.why


@asynccontextmanager
async def lying_list(mesh: JoinedMesh, clock: Clock | None = None) -> AsyncIterator[LyingList]:
    """A mesh with one model, a registry that lies, a router that follows it, and no node yet.

    `clock` is the one by which the router measures how old its policy's last statement is.
    """
    mesh.allow_models({MODEL: [WEIGHTS]})
    kms = mesh.kms()
    registry = registry_twin()
    async with (
        mesh.member("registry", kms) as registry_member,
        registry_member.serve([registry_binding(registry)]) as serving,
        mesh.member("router", kms, keeper=mesh.keeper("router", clock=clock)) as router,
        AsyncExitStack() as running,
        asyncio.TaskGroup() as tasks,
    ):
        target = f"127.0.0.1:{serving.port}"
        upstreams = NoticingUpstreams(router, router.any_peer("registry", [target]), MAX_LISTED)
        following = tasks.create_task(upstreams.follow())
        yield LyingList(mesh, kms, registry, registry_member, target, router, upstreams, running)
        following.cancel()
