"""Wire to domain; decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from teemesh.registry.v1 import registry_pb2 as pb
from teemesh.registry.v1 import registry_pb2_grpc as pb_grpc
from teemesh.registry.v1 import tenants_pb2, tenants_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import caller_lease
from libs.rpc.calls import Context
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding, current_caller
from services.registry.catalogue import Catalogue
from services.registry.directory import Alive, Changes, Directory, Event, Snapshot
from services.registry.drains import Drains
from services.registry.leases import NodeLeases, Offer
from services.registry.listing import page_of_providers, page_of_sessions
from services.registry.providers import MAX_PERMILLE, Load, Provider, State
from services.registry.sessions import Sessions
from services.registry.summaries import Summary
from services.registry.tenants import Tenants
from services.registry.view import Change, Position
from services.registry.watch import watch

_NODES = frozenset({"node"})
_READERS = frozenset({"router", "operator", "auditor", "attestation"})
_OPERATOR = "operator"
_STATES = {
    State.ACTIVE: pb.PROVIDER_STATE_ACTIVE,
    State.DRAINING: pb.PROVIDER_STATE_DRAINING,
    State.DRAINED: pb.PROVIDER_STATE_DRAINED,
}


class SessionUnknown(MeshError):
    """No session of that id."""

    code = Code.NOT_FOUND
    reason = "SESSION_UNKNOWN"


class NotYourNode(MeshError):
    """A node may drain itself only."""

    code = Code.PERMISSION_DENIED
    reason = "NOT_YOUR_NODE"


class RegistryServicer(pb_grpc.ProviderRegistryServiceServicer):
    """See `registry.proto`."""

    def __init__(
        self,
        directory: Directory,
        leases: NodeLeases,
        drains: Drains,
        sessions: Sessions,
        catalogue: Catalogue,
        policy: PolicyKeeper,
    ) -> None:
        self._directory = directory
        self._leases = leases
        self._drains = drains
        self._sessions = sessions
        self._catalogue = catalogue
        self._policy = policy
        self._last: tuple[Event, pb.WatchResponse] | None = None

    async def Register(  # noqa: N802
        self, request: pb.RegisterRequest, context: Context
    ) -> pb.RegisterResponse:
        models = tuple((model.id, model.weights_sha256.hex()) for model in request.models)
        provider = await self._leases.register(caller_lease(), Offer(request.endpoint, models, _load(request.load)))
        return pb.RegisterResponse(
            lease_until_ms=provider.lease_until_ms, session_id=bytes.fromhex(provider.session_id)
        )

    async def Renew(  # noqa: N802
        self, request: pb.RenewRequest, context: Context
    ) -> pb.RenewResponse:
        provider = await self._leases.renew(caller_lease(), _load(request.load), request.draining)
        return pb.RenewResponse(lease_until_ms=provider.lease_until_ms)

    async def Deregister(  # noqa: N802
        self,
        request: pb.DeregisterRequest,
        context: Context,
    ) -> pb.DeregisterResponse:
        await self._leases.end(caller_lease())
        return pb.DeregisterResponse()

    async def Drain(  # noqa: N802
        self, request: pb.DrainRequest, context: Context
    ) -> pb.DrainResponse:
        caller = current_caller()
        if caller.role == _OPERATOR:
            await self._drains.begin(request.spiffe_id, caller.spiffe_id, request.reason)
        elif request.spiffe_id in ("", caller.spiffe_id):
            await self._leases.drain(caller_lease())
        else:
            raise NotYourNode("a node may drain itself only")
        return pb.DrainResponse()

    async def Resume(  # noqa: N802
        self, request: pb.ResumeRequest, context: Context
    ) -> pb.ResumeResponse:
        await self._drains.end(request.spiffe_id, current_caller().spiffe_id)
        return pb.ResumeResponse()

    async def ListProviders(  # noqa: N802
        self,
        request: pb.ListProvidersRequest,
        context: Context,
    ) -> pb.ListProvidersResponse:
        found = (
            provider
            for provider in self._directory.all()
            if (not request.model or provider.serves(request.model))
            and (not request.state or _STATES[provider.state] == request.state)
            and (not request.region or provider.region == request.region)
        )
        page, following = page_of_providers(found, request.page_token, request.page_size)
        return pb.ListProvidersResponse(providers=[_wire(provider) for provider in page], next_page_token=following)

    async def Watch(  # noqa: N802
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        known = Position(request.epoch, request.sequence) if request.epoch else None
        async with aclosing(watch(self._directory, known)) as events:
            async for event in events:
                yield self._told(event)

    def _told(self, event: Event) -> pb.WatchResponse:
        """The message about an event, which all watchers get: it is made for the first of them."""
        if self._last is None or self._last[0] is not event:
            self._last = (event, _told(event))
        return self._last[1]

    async def GetSession(  # noqa: N802
        self,
        request: pb.GetSessionRequest,
        context: Context,
    ) -> pb.GetSessionResponse:
        document = await self._sessions.get(request.session_id.hex())
        if document is None:
            raise SessionUnknown("no session of that id")
        return pb.GetSessionResponse(document=document)

    async def ListSessions(  # noqa: N802
        self,
        request: pb.ListSessionsRequest,
        context: Context,
    ) -> pb.ListSessionsResponse:
        current = {provider.session_id for provider in self._directory.all()}
        found = (
            summary
            for summary in self._catalogue.all()
            if request.spiffe_id in ("", summary.spiffe_id)
            and (not request.model or request.model in summary.models)
            and (not request.current or summary.session_id in current)
        )
        page, following = page_of_sessions(found, request.page_token, request.page_size)
        return pb.ListSessionsResponse(
            sessions=[_wire_summary(summary, summary.session_id in current) for summary in page],
            next_page_token=following,
        )

    async def GetPolicy(  # noqa: N802
        self,
        request: pb.GetPolicyRequest,
        context: Context,
    ) -> pb.GetPolicyResponse:
        return pb.GetPolicyResponse(signed_policy=self._policy.signed(request.version))


class TenantServicer(tenants_pb2_grpc.TenantServiceServicer):
    """See `tenants.proto`."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    async def PutTenant(  # noqa: N802
        self,
        request: tenants_pb2.PutTenantRequest,
        context: Context,
    ) -> tenants_pb2.PutTenantResponse:
        await self._tenants.put(request.signed_record)
        return tenants_pb2.PutTenantResponse()

    async def FindTenant(  # noqa: N802
        self,
        request: tenants_pb2.FindTenantRequest,
        context: Context,
    ) -> tenants_pb2.FindTenantResponse:
        return tenants_pb2.FindTenantResponse(signed_record=await self._tenants.find(request.api_key_sha256))

    async def GetTenant(  # noqa: N802
        self,
        request: tenants_pb2.GetTenantRequest,
        context: Context,
    ) -> tenants_pb2.GetTenantResponse:
        return tenants_pb2.GetTenantResponse(signed_record=await self._tenants.get(request.tenant_id))

    async def ListTenants(  # noqa: N802
        self,
        request: tenants_pb2.ListTenantsRequest,
        context: Context,
    ) -> tenants_pb2.ListTenantsResponse:
        records, following = await self._tenants.page(request.page_token, request.page_size)
        return tenants_pb2.ListTenantsResponse(signed_records=records, next_page_token=following)


def registry_binding(servicer: RegistryServicer) -> ServiceBinding:
    name = "teemesh.registry.v1.ProviderRegistryService"
    return ServiceBinding(
        name=name,
        add=lambda server: pb_grpc.add_ProviderRegistryServiceServicer_to_server(servicer, server),
        methods={
            f"/{name}/Register": MethodRule(roles=_NODES),
            f"/{name}/Renew": MethodRule(roles=_NODES),
            f"/{name}/Deregister": MethodRule(roles=_NODES),
            f"/{name}/Drain": MethodRule(roles=_NODES | {_OPERATOR}),
            f"/{name}/Resume": MethodRule(roles=frozenset({_OPERATOR})),
            f"/{name}/ListProviders": MethodRule(roles=_READERS),
            f"/{name}/Watch": MethodRule(roles=_READERS, long_lived=True),
            f"/{name}/GetSession": MethodRule(roles=_READERS),
            f"/{name}/ListSessions": MethodRule(roles=_READERS),
            f"/{name}/GetPolicy": MethodRule(roles=ANY_ROLE),
        },
    )


def tenants_binding(servicer: TenantServicer) -> ServiceBinding:
    name = "teemesh.registry.v1.TenantService"
    return ServiceBinding(
        name=name,
        add=lambda server: tenants_pb2_grpc.add_TenantServiceServicer_to_server(servicer, server),
        methods={
            f"/{name}/PutTenant": MethodRule(roles=frozenset({"operator"})),
            f"/{name}/FindTenant": MethodRule(roles=frozenset({"router"})),
            f"/{name}/GetTenant": MethodRule(roles=frozenset({_OPERATOR})),
            f"/{name}/ListTenants": MethodRule(roles=frozenset({_OPERATOR})),
        },
    )


def _load(load: pb.Load) -> Load:
    """What an engine says of its cache beyond the whole of it is not known, rather than refused."""
    says = load.HasField("kv_cache_permille") and load.kv_cache_permille <= MAX_PERMILLE
    return Load(
        running=load.running_requests,
        waiting=load.waiting_requests,
        capacity=load.capacity,
        kv_cache_permille=load.kv_cache_permille if says else None,
    )


def _told(event: Event) -> pb.WatchResponse:
    told = pb.WatchResponse(sequence=event.position.sequence, epoch=event.position.epoch)
    match event:
        case Snapshot(providers, _, digest):
            told.snapshot.providers.extend(_wire(provider) for provider in providers)
            told.snapshot.state_digest = digest
        case Change(spiffe_id, None, _):
            told.ended = spiffe_id
        case Change(_, Provider() as provider, _):
            told.changed.CopyFrom(_wire(provider))
        case Changes(changes, _):
            for change in changes:
                if change.provider is None:
                    told.changes.ended.append(change.spiffe_id)
                else:
                    told.changes.changed.append(_wire(change.provider))
        case Alive(_, digest):
            told.heartbeat.state_digest = digest
    return told


def _wire(provider: Provider) -> pb.Provider:
    drain = provider.drain
    return pb.Provider(
        spiffe_id=provider.spiffe_id,
        endpoint=provider.endpoint,
        models=[pb.Model(id=model, weights_sha256=bytes.fromhex(weights)) for model, weights in provider.models],
        evidence_digest=bytes.fromhex(provider.evidence_digest),
        spki_sha256=bytes.fromhex(provider.spki_sha256),
        session_id=bytes.fromhex(provider.session_id),
        lease_until_ms=provider.lease_until_ms,
        load=pb.Load(
            running_requests=provider.load.running,
            waiting_requests=provider.load.waiting,
            capacity=provider.load.capacity,
            kv_cache_permille=provider.load.kv_cache_permille,
        ),
        draining=provider.state is not State.ACTIVE,
        state=_STATES[provider.state],
        drained_by="" if drain is None else drain.by,
        drain_reason="" if drain is None else drain.reason,
        engine=pb.Engine(name=provider.engine.name, arguments_sha256=bytes.fromhex(provider.engine.arguments_sha256)),
        region=provider.region,
    )


def _wire_summary(summary: Summary, current: bool) -> pb.SessionSummary:
    return pb.SessionSummary(
        session_id=bytes.fromhex(summary.session_id),
        spiffe_id=summary.spiffe_id,
        spki_sha256=bytes.fromhex(summary.spki_sha256),
        models=summary.models,
        established_ms=summary.established_at * 1000,
        expires_ms=summary.expires_at * 1000,
        current=current,
    )
