"""What attacks are made on: members of one mesh that really listen, started when an attack first needs them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.identity.certificate import Subject, key_pem, parse, pem_of
from libs.identity.freshness import PolicyKeeper
from libs.identity.gate import MeshGate
from libs.identity.handover import Successor
from libs.identity.lease import caller_lease
from libs.identity.member import Member
from libs.identity.renewal import Credential
from libs.rpc.channel import open_channel
from libs.rpc.errors import remote_errors
from libs.rpc.policies import MethodRule, ServiceBinding
from libs.tee.challenge import Challenge
from libs.tee.evidence import Evidence
from services.devtee.machine import Machine, VirtualTd
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.running_kms import RunningKms, running_kms
from tests.fakes.small_mesh import KMS, kms_servicer

_CALL_SECONDS = 10

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listening:
    """A ledger that serves the exchange of evidence and one method for routers and operators that asks for a lease."""

    member: Member
    target: str


class Ground:
    """One mesh in a folder of its own. Nothing that an attack does to it outlives the attack."""

    def __init__(self, mesh: JoinedMesh, stack: AsyncExitStack) -> None:
        self.mesh = mesh
        self.kms: KmsCore = mesh.kms()
        self._stack = stack
        self._listening: Listening | None = None
        self._running: RunningKms | None = None

    async def listening(self) -> Listening:
        if self._listening is None:
            member = await self.member("ledger")
            serving = await self.enter(member.serve([_statements()]))
            self._listening = Listening(member, f"127.0.0.1:{serving.port}")
        return self._listening

    async def running(self) -> RunningKms:
        """The KMS with all its listeners."""
        if self._running is None:
            self._running = await self.enter(running_kms(self.mesh, self.kms))
        return self._running

    async def member(self, role: str, **given: Any) -> Member:
        return await self.enter(self.mesh.member(role, self.kms, **given))

    async def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Start something that lives until the attack is over: it sees nothing of the attack's refusal."""
        return await self._stack.enter_async_context(context)

    async def gate(self) -> MeshGate:
        """The gate of the listener, for what TLS in front of it would not let through."""
        member = (await self.listening()).member
        return MeshGate(TRUST_DOMAIN, member.identity, member.policy, member.leases, member.streams)

    def keeper(self) -> PolicyKeeper:
        return self.mesh.keeper("judge")

    def genuine(self, role: str = "router", instance: str = "1", **proof: Any) -> Credential:
        """What an honest member has, or would have if its proof were as it is here."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self.certified(key, self.proof(role, key, **proof), role, instance)

    def certified(
        self, key: ec.EllipticCurvePrivateKey, evidence: Evidence, role: str = "router", instance: str = "1"
    ) -> Credential:
        """A certificate by a KMS that was deceived: it names the evidence, whatever that is about."""
        subject = Subject(TRUST_DOMAIN, role, instance, evidence.digest)
        return Credential(key, parse(self.kms.ca.issue_svid(subject, key.public_key(), time.time())), evidence)

    def proof(
        self,
        role: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        challenge: Challenge | None = None,
        td: VirtualTd | None = None,
        claims: Mapping[str, Any] | None = None,
    ) -> Evidence:
        given = challenge or self.kms.challenges.issue("certificate")
        return self.mesh.evidence(role, given, key, td=td, claims=claims)

    def person(self, role: str = "operator") -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = Subject(TRUST_DOMAIN, role, "ada", None)
        return key, self.kms.ca.issue_svid(subject, key.public_key(), time.time())

    @asynccontextmanager
    async def connected(self, key: ec.EllipticCurvePrivateKey, der: bytes) -> AsyncIterator[grpc.aio.Channel]:
        """A connection to the listener that shows this certificate and presents nothing by itself."""
        listening = await self.listening()
        async with open_channel(
            listening.target,
            root_pem=listening.member.ca_pem,
            server_name=f"ledger.{TRUST_DOMAIN}",
            key_pem=key_pem(key),
            certificate_pem=pem_of(der),
        ) as channel:
            yield channel

    async def present(self, shown: Credential, document: bytes | None = None) -> None:
        """Show a certificate to the listener, and present a document: by default the one that it names."""
        async with self.connected(shown.key, shown.certificate.der) as channel:
            await present(channel, shown.evidence.document if document is None else document)

    async def call(self, shown: Credential) -> None:
        """Show a certificate, present its evidence, and call what needs a lease."""
        async with self.connected(shown.key, shown.certificate.der) as channel:
            await present(channel, shown.evidence.document)
            await ask(channel)


async def present(channel: grpc.aio.Channel, document: bytes) -> None:
    request = evidence_pb2.PresentEvidenceRequest(document=document)
    with remote_errors():
        await evidence_pb2_grpc.EvidenceServiceStub(channel).PresentEvidence(request, timeout=_CALL_SECONDS)


async def hand_over(channel: grpc.aio.Channel, successor: Successor) -> None:
    request = evidence_pb2.PresentEvidenceRequest(
        document=successor.document, next_certificate=successor.certificate, signature=successor.signature
    )
    with remote_errors():
        await evidence_pb2_grpc.EvidenceServiceStub(channel).PresentEvidence(request, timeout=_CALL_SECONDS)


async def fetch_evidence(channel: grpc.aio.Channel, digest: bytes = b"") -> None:
    """Call what any certificate of the mesh may call."""
    request = evidence_pb2.GetEvidenceRequest(digest=digest)
    with remote_errors():
        await evidence_pb2_grpc.EvidenceServiceStub(channel).GetEvidence(request, timeout=_CALL_SECONDS)


async def ask(channel: grpc.aio.Channel) -> None:
    with remote_errors():
        await kms_pb2_grpc.KmsServiceStub(channel).GetStatement(kms_pb2.GetStatementRequest(), timeout=_CALL_SECONDS)


@asynccontextmanager
async def ground(machine: Machine) -> AsyncIterator[Ground]:
    with tempfile.TemporaryDirectory(prefix="mesh") as folder:
        async with AsyncExitStack() as stack:
            yield Ground(JoinedMesh(Path(folder), machine), stack)


def _statements() -> ServiceBinding:
    async def statement() -> kms_pb2.GetStatementResponse:
        return kms_pb2.GetStatementResponse(statement=caller_lease().certificate.spiffe_id.encode())

    rule = MethodRule(roles=frozenset({"router", "operator"}))
    return ServiceBinding(
        KMS,
        lambda server: kms_pb2_grpc.add_KmsServiceServicer_to_server(kms_servicer(statement), server),
        {f"/{KMS}/GetStatement": rule},
    )
