"""What operators ask: a KMS, nodes that really joined, and a registry that says whatever a test makes it say."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.registry.v1 import registry_pb2 as pb
from teemesh.registry.v1 import registry_pb2_grpc, tenants_pb2, tenants_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import Subject, key_pem, pem_of, spki_of_certificate
from libs.identity.lease import appraise_peer
from libs.identity.member import Member
from libs.policy.revocation import Revocation, RevocationKind, sign_revocation
from libs.rpc.policies import MethodRule, ServiceBinding, current_caller
from services.cli.policy.revoke import revoke
from services.registry.sessions import SealedSession, draft_session
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh
from tests.fakes.running_kms import RunningKms, running_kms

MODEL = "smollm2-135m"
WEIGHTS = "77" * 32
CLAIMS = {
    "engine": "embedded/1",
    "engine_args_sha256": "00" * 32,
    "models": [{"id": MODEL, "weights_sha256": WEIGHTS}],
    "gpu_evidence_sha256": None,
    "region": "eu-west",
}
_OPERATORS = frozenset({"operator"})


class Unknown(MeshError):
    """The registry has nothing of that name."""

    code = Code.NOT_FOUND
    reason = "SESSION_UNKNOWN"


class TalkingRegistry(registry_pb2_grpc.ProviderRegistryServiceServicer):
    """Gives out, page by page, what it was told to."""

    def __init__(self) -> None:
        self.providers: list[pb.Provider] = []
        self.sessions: dict[bytes, bytes] = {}
        self.summaries: list[pb.SessionSummary] = []
        self.calls: list[Any] = []
        self.callers: list[str] = []
        self.page = 2
        self.endless = False

    async def ListProviders(self, request: Any, context: Any) -> pb.ListProvidersResponse:  # noqa: N802
        self.calls.append(request)
        if self.endless:
            return pb.ListProvidersResponse(next_page_token="spiffe://more")
        left = [provider for provider in self.providers if provider.spiffe_id > request.page_token]
        more = left[self.page - 1].spiffe_id if len(left) > self.page else ""
        return pb.ListProvidersResponse(providers=left[: self.page], next_page_token=more)

    async def ListSessions(self, request: Any, context: Any) -> pb.ListSessionsResponse:  # noqa: N802
        self.calls.append(request)
        first = int(request.page_token or 0)
        more = str(first + self.page) if first + self.page < len(self.summaries) else ""
        return pb.ListSessionsResponse(sessions=self.summaries[first : first + self.page], next_page_token=more)

    async def GetSession(self, request: Any, context: Any) -> pb.GetSessionResponse:  # noqa: N802
        if request.session_id not in self.sessions:
            raise Unknown("no session of that id")
        return pb.GetSessionResponse(document=self.sessions[request.session_id])

    async def Drain(self, request: Any, context: Any) -> pb.DrainResponse:  # noqa: N802
        self.calls.append(request)
        self.callers.append(current_caller().spiffe_id)
        return pb.DrainResponse()

    async def Resume(self, request: Any, context: Any) -> pb.ResumeResponse:  # noqa: N802
        self.calls.append(request)
        return pb.ResumeResponse()


class TalkingTenants(tenants_pb2_grpc.TenantServiceServicer):
    """Gives out the records that it was told to, two at a time, and takes whatever it is given."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.put: list[bytes] = []
        self.endless = False

    async def GetTenant(self, request: Any, context: Any) -> tenants_pb2.GetTenantResponse:  # noqa: N802
        return tenants_pb2.GetTenantResponse(signed_record=self.records[request.tenant_id])

    async def ListTenants(self, request: Any, context: Any) -> tenants_pb2.ListTenantsResponse:  # noqa: N802
        first = int(request.page_token or 0)
        more = str(first + 2) if self.endless or first + 2 < len(self.records) else ""
        page = [*self.records.values()][first : first + 2]
        return tenants_pb2.ListTenantsResponse(signed_records=page, next_page_token=more)

    async def PutTenant(self, request: Any, context: Any) -> tenants_pb2.PutTenantResponse:  # noqa: N802
        self.put.append(request.signed_record)
        return tenants_pb2.PutTenantResponse()


@dataclass(slots=True)
class Node:
    """One that serves, and its session as a registry would have sealed it."""

    member: Member
    endpoint: str
    session: SealedSession

    @property
    def provider(self) -> pb.Provider:
        current = self.member.identity.current
        return pb.Provider(
            spiffe_id=self.member.spiffe_id,
            endpoint=self.endpoint,
            models=[pb.Model(id=MODEL, weights_sha256=bytes.fromhex(WEIGHTS))],
            evidence_digest=current.evidence.digest,
            spki_sha256=current.certificate.spki_sha256,
            session_id=bytes.fromhex(self.session.session_id),
            lease_until_ms=int(time.time() * 1000) + 15_000,
            load=pb.Load(running_requests=1, waiting_requests=2, capacity=4, kv_cache_permille=250),
            engine=pb.Engine(name="embedded/1", arguments_sha256=bytes(32)),
            region="eu-west",
            state=pb.PROVIDER_STATE_ACTIVE,
        )


@dataclass(slots=True)
class OperatorsMesh:
    """Everything that is running, and the mesh.json that describes it."""

    joined: JoinedMesh
    kms: RunningKms
    registry: TalkingRegistry
    tenants: TalkingTenants
    folder: Path
    mesh: Path
    stack: AsyncExitStack = field(repr=False)

    async def node(self, instance: str) -> Node:
        """Start a node, and have the registry list it."""
        member = await self.stack.enter_async_context(
            self.joined.member("node", self.kms.core, instance=instance, claims=CLAIMS)
        )
        serving = await self.stack.enter_async_context(member.serve([]))
        serving.ready()
        endpoint = f"127.0.0.1:{serving.port}"
        current = member.identity.current
        policy, ca = self.kms.core.policy.current, spki_of_certificate(self.kms.core.ca.certificate)
        lease = appraise_peer(current.certificate, current.evidence.document, policy, ca, time.time())
        node = Node(member, endpoint, draft_session(lease, endpoint))
        self.registry.sessions[bytes.fromhex(node.session.session_id)] = node.session.document
        self.registry.providers.append(node.provider)
        self.registry.providers.sort(key=lambda provider: provider.spiffe_id)
        return node

    async def revoke(self, kind: RevocationKind, value: str) -> None:
        """Have one operator revoke something, through the KMS."""
        revocation = Revocation(TRUST_DOMAIN, kind, value, "a test", time_ms=int(time.time() * 1000))
        await revoke(sign_revocation(revocation, self.joined.operators[2]), self.mesh, 10.0)


@asynccontextmanager
async def operators_mesh(joined: JoinedMesh, folder: Path) -> AsyncIterator[OperatorsMesh]:
    """Run a KMS and a registry."""
    joined.draft = {**joined.draft, "models": {MODEL: [WEIGHTS]}}
    joined.seed = joined.sign(joined.draft)
    async with AsyncExitStack() as stack:
        kms = await stack.enter_async_context(running_kms(joined, joined.kms()))
        registry, tenants = _registry(), _tenants()
        member = await stack.enter_async_context(joined.member("registry", kms.core))
        serving = await stack.enter_async_context(member.serve([_binding(registry), _tenants_binding(tenants)]))
        serving.ready()
        mesh = _describe(joined, kms, f"127.0.0.1:{serving.port}", folder)
        yield OperatorsMesh(joined, kms, registry, tenants, folder, mesh, stack)


def _registry() -> TalkingRegistry:
    return TalkingRegistry()  # type: ignore[abstract]  # The other methods stay unimplemented.


def _tenants() -> TalkingTenants:
    return TalkingTenants()  # type: ignore[abstract]


def _describe(joined: JoinedMesh, kms: RunningKms, registry: str, folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = kms.core.ca.issue_svid(Subject(TRUST_DOMAIN, "operator", "ada", None), key.public_key(), time.time())
    files = {
        "mesh_ca": kms.member.ca_pem,
        "operator_cert": pem_of(certificate),
        "operator_key": key_pem(key),
        "policy": joined.seed,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    members = {
        "kms_grpc": [kms.target],
        "registry_grpc": registry,
        "trust_domain": TRUST_DOMAIN,
        "operator_public_keys": [each.public_key().public_bytes_raw().hex() for each in joined.operators],
        "operator_threshold": 2,
        **{name: name for name in files},
    }
    path = folder / "mesh.json"
    path.write_text(json.dumps(members))
    return path


def _binding(registry: TalkingRegistry) -> ServiceBinding:
    name = "teemesh.registry.v1.ProviderRegistryService"
    calls = ("ListProviders", "ListSessions", "GetSession", "Drain", "Resume")
    return ServiceBinding(
        name=name,
        add=lambda server: registry_pb2_grpc.add_ProviderRegistryServiceServicer_to_server(registry, server),
        methods={f"/{name}/{call}": MethodRule(roles=_OPERATORS) for call in calls},
    )


def _tenants_binding(tenants: TalkingTenants) -> ServiceBinding:
    name = "teemesh.registry.v1.TenantService"
    calls = ("GetTenant", "ListTenants", "PutTenant")
    return ServiceBinding(
        name=name,
        add=lambda server: tenants_pb2_grpc.add_TenantServiceServicer_to_server(tenants, server),
        methods={f"/{name}/{call}": MethodRule(roles=_OPERATORS) for call in calls},
    )
