"""The registry over real mutual TLS: who may call what, and with which reasons it refuses."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc, tenants_pb2, tenants_pb2_grpc

from libs import jcs
from libs.aci.session import verify_session
from libs.identity.freshness import PolicyKeeper, PolicyUnknown
from libs.identity.lease import Lease
from libs.identity.revoked import NodeRevoked
from libs.policy.tenant_record import TenantRecord, unrestricted
from libs.policy.tenants import api_key_digest, sign_tenant
from libs.rpc.errors import reason_of
from libs.rpc.middleware import standard_middleware
from libs.rpc.policies import Caller, MethodRule, merge_methods
from libs.rpc.server import serving
from services.registry.refusals import Refusals
from services.registry.servicer import RegistryServicer, TenantServicer, registry_binding, tenants_binding
from services.registry.tenants import Tenants
from tests.fakes.leases import MODEL, WEIGHTS, node_lease
from tests.fakes.registries import PATIENCE_SECONDS, Mesh, Registry, registry_mesh
from tests.fakes.small_mesh import RoleGate, SmallMesh

NODE = "spiffe://mesh.test/node/1"
ADMIN = Ed25519PrivateKey.generate()
RECORD = TenantRecord("ab" * 16, 1, "Acme", unrestricted(api_key_digest("sk-one")))


class Policy:
    tenant_admin_key = ADMIN.public_key().public_bytes_raw()


class Keeper:
    current = Policy()

    def signed(self, version: int) -> bytes:
        if version not in (0, 3):
            raise PolicyUnknown("not here")
        return b"version 3"


class LeaseGate(RoleGate):
    """Believes what TLS let through, and hands each instance the lease that the test wrote for it."""

    def __init__(self, leases: Mapping[str, Lease]) -> None:
        super().__init__()
        self._leases = leases
        self.revoked = False

    def admit(self, certificate_pem: bytes, rule: MethodRule) -> Caller:
        caller = super().admit(certificate_pem, rule)
        if self.revoked:
            raise NodeRevoked(f"{caller.spiffe_id} is revoked")
        return replace(caller, lease=self._leases.get(caller.role))


class Line:
    """Calls to one registry, from any role."""

    def __init__(self, tls: SmallMesh, port: int, registry: Registry, gate: LeaseGate) -> None:
        self._tls = tls
        self._port = port
        self.registry = registry
        self.gate = gate

    @asynccontextmanager
    async def providers(self, role: str) -> AsyncIterator[registry_pb2_grpc.ProviderRegistryServiceStub]:
        async with self._tls.channel(self._port, role) as channel:
            yield registry_pb2_grpc.ProviderRegistryServiceStub(channel)

    @asynccontextmanager
    async def tenants(self, role: str) -> AsyncIterator[tenants_pb2_grpc.TenantServiceStub]:
        async with self._tls.channel(self._port, role) as channel:
            yield tenants_pb2_grpc.TenantServiceStub(channel)


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with registry_mesh(tmp_path) as mesh, mesh.registry() as registry, _serve(mesh, registry) as line:
        yield line


@asynccontextmanager
async def _serve(mesh: Mesh, registry: Registry) -> AsyncIterator[Line]:
    tls = SmallMesh()
    bindings = [
        registry_binding(
            RegistryServicer(
                registry.directory,
                registry.leases,
                registry.drains,
                registry.sessions,
                registry.catalogue,
                cast(PolicyKeeper, Keeper()),
            )
        ),
        tenants_binding(TenantServicer(Tenants(registry.store.tenants, cast(PolicyKeeper, Keeper())))),
    ]
    gate = LeaseGate({"node": replace(node_lease("1", more_claims={"region": "eu-north"}), until=mesh.now + 600)})
    refusals = Refusals(registry.admissions)
    middleware = standard_middleware(gate, merge_methods(bindings), [refusals.middleware])
    async with serving("127.0.0.1:0", tls.credentials(), bindings, middleware, drain_seconds=1.0) as server:
        server.ready()
        yield Line(tls, server.port, registry, gate)


def registration(endpoint: str = "127.0.0.1:4000", model: str = MODEL) -> registry_pb2.RegisterRequest:
    models = [registry_pb2.Model(id=model, weights_sha256=bytes.fromhex(WEIGHTS))]
    return registry_pb2.RegisterRequest(endpoint=endpoint, models=models, load=registry_pb2.Load(capacity=4))


async def event_of(watch: grpc.aio.UnaryStreamCall[Any, registry_pb2.WatchResponse]) -> registry_pb2.WatchResponse:
    event = await watch.read()
    assert isinstance(event, registry_pb2.WatchResponse)
    return event


async def refused(call: Any) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), reason_of(error.value)


async def test_a_router_sees_a_node_come_change_and_go(line: Line) -> None:
    async with line.providers("router") as reader, line.providers("node") as node:
        watch = reader.Watch(registry_pb2.WatchRequest())
        first = await event_of(watch)
        assert first.WhichOneof("event") == "snapshot"
        registered = await node.Register(registration(), timeout=PATIENCE_SECONDS)
        changed = (await event_of(watch)).changed
        assert (changed.spiffe_id, changed.endpoint) == ("spiffe://mesh.test/node/1", "127.0.0.1:4000")
        assert changed.session_id == registered.session_id
        assert changed.lease_until_ms == registered.lease_until_ms
        await node.Renew(
            registry_pb2.RenewRequest(
                load=registry_pb2.Load(running_requests=3, capacity=4, kv_cache_permille=250), draining=True
            ),
            timeout=PATIENCE_SECONDS,
        )
        changed = (await event_of(watch)).changed
        assert (changed.load.running_requests, changed.load.kv_cache_permille, changed.draining) == (3, 250, True)
        assert (changed.engine.name, changed.engine.arguments_sha256, changed.region) == ("llama", b"", "eu-north")
        session = await reader.GetSession(
            registry_pb2.GetSessionRequest(session_id=registered.session_id), timeout=PATIENCE_SECONDS
        )
        assert verify_session(session.document, registered.session_id.hex()).upstream_name == changed.spiffe_id
        listed = await reader.ListProviders(registry_pb2.ListProvidersRequest(), timeout=PATIENCE_SECONDS)
        assert [provider.spiffe_id for provider in listed.providers] == [changed.spiffe_id]
        await node.Deregister(registry_pb2.DeregisterRequest(), timeout=PATIENCE_SECONDS)
        assert (await event_of(watch)).ended == changed.spiffe_id
        watch.cancel()


async def test_a_registration_that_is_not_what_was_attested_is_refused(line: Line) -> None:
    async with line.providers("node") as node:
        assert await refused(node.Register(registration(endpoint="nowhere"), timeout=PATIENCE_SECONDS)) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "ENDPOINT_MALFORMED",
        )
        assert await refused(node.Register(registration(model="other"), timeout=PATIENCE_SECONDS)) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "MODEL_NOT_ALLOWED",
        )
        assert await refused(node.Renew(registry_pb2.RenewRequest(), timeout=PATIENCE_SECONDS)) == (
            grpc.StatusCode.NOT_FOUND,
            "LEASE_UNKNOWN",
        )


async def test_a_refused_registration_is_on_record_once_and_nothing_else_is(line: Line) -> None:
    async with line.providers("node") as node, line.providers("router") as router:
        for _ in range(3):
            await refused(node.Register(registration(model="other"), timeout=PATIENCE_SECONDS))
        # A lease that is unknown, and a caller that is no node, are no admission refused.
        await refused(node.Renew(registry_pb2.RenewRequest(), timeout=PATIENCE_SECONDS))
        await refused(router.Register(registration(), timeout=PATIENCE_SECONDS))
    (only,) = [body for _, body in line.registry.log.entries]
    assert (only["decision"], only["spiffe_id"], only["reason"]) == ("refused", NODE, "MODEL_NOT_ALLOWED")


async def test_a_node_that_the_gate_turns_away_is_on_record(line: Line) -> None:
    line.gate.revoked = True
    async with line.providers("node") as node:
        assert (await refused(node.Register(registration(), timeout=PATIENCE_SECONDS)))[1] == "NODE_REVOKED"
    (only,) = [body for _, body in line.registry.log.entries]
    assert only["reason"] == "NODE_REVOKED"


@pytest.mark.parametrize("session_id", [b"", b"short", bytes(32)])
async def test_an_unknown_session_is_named_so(line: Line, session_id: bytes) -> None:
    async with line.providers("router") as reader:
        request = registry_pb2.GetSessionRequest(session_id=session_id)
        assert await refused(reader.GetSession(request, timeout=PATIENCE_SECONDS)) == (
            grpc.StatusCode.NOT_FOUND,
            "SESSION_UNKNOWN",
        )


async def drained(line: Line, reason: str = "disk") -> None:
    async with line.providers("operator") as operator:
        request = registry_pb2.DrainRequest(spiffe_id=NODE, reason=reason)
        await operator.Drain(request, timeout=PATIENCE_SECONDS)


async def test_routers_see_who_drains_a_node_and_that_it_is_resumed(line: Line) -> None:
    async with line.providers("router") as reader, line.providers("node") as node:
        await node.Register(registration(), timeout=PATIENCE_SECONDS)
        watch = reader.Watch(registry_pb2.WatchRequest())
        (listed,) = (await event_of(watch)).snapshot.providers
        assert (listed.draining, listed.state, listed.drained_by) == (False, registry_pb2.PROVIDER_STATE_ACTIVE, "")
        await drained(line)
        changed = (await event_of(watch)).changed
        assert (changed.draining, changed.state) == (True, registry_pb2.PROVIDER_STATE_DRAINED)
        assert (changed.drained_by, changed.drain_reason) == ("spiffe://mesh.test/operator/1", "disk")
        async with line.providers("operator") as operator:
            await operator.Resume(registry_pb2.ResumeRequest(spiffe_id=NODE), timeout=PATIENCE_SECONDS)
        assert not (await event_of(watch)).changed.draining
        watch.cancel()


async def test_a_node_drains_itself_only(line: Line) -> None:
    async with line.providers("node") as node, line.providers("router") as router:
        await node.Register(registration(), timeout=PATIENCE_SECONDS)
        other = registry_pb2.DrainRequest(spiffe_id="spiffe://mesh.test/node/2")
        assert await refused(node.Drain(other, timeout=PATIENCE_SECONDS)) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "NOT_YOUR_NODE",
        )
        await node.Drain(registry_pb2.DrainRequest(), timeout=PATIENCE_SECONDS)
        watch = router.Watch(registry_pb2.WatchRequest())
        (listed,) = (await event_of(watch)).snapshot.providers
        assert (listed.draining, listed.drained_by) == (True, "")
        watch.cancel()


async def test_drains_are_refused_with_their_reasons(line: Line) -> None:
    async with line.providers("operator") as operator, line.providers("node") as node:
        unknown = registry_pb2.DrainRequest(spiffe_id=NODE)
        assert await refused(operator.Drain(unknown, timeout=PATIENCE_SECONDS)) == (
            grpc.StatusCode.NOT_FOUND,
            "PROVIDER_UNKNOWN",
        )
        assert (await refused(node.Drain(unknown, timeout=PATIENCE_SECONDS)))[1] == "LEASE_UNKNOWN"
        await node.Register(registration(), timeout=PATIENCE_SECONDS)
        unreadable = registry_pb2.DrainRequest(spiffe_id=NODE, reason="a\nb")
        assert (await refused(operator.Drain(unreadable, timeout=PATIENCE_SECONDS)))[1] == "DRAIN_REASON_MALFORMED"
        resume = registry_pb2.ResumeRequest(spiffe_id=NODE)
        assert (await refused(node.Resume(resume, timeout=PATIENCE_SECONDS)))[1] == "ROLE_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, 1),
        ({"model": MODEL}, 1),
        ({"model": "other"}, 0),
        ({"state": registry_pb2.PROVIDER_STATE_DRAINED}, 1),
        ({"state": registry_pb2.PROVIDER_STATE_ACTIVE}, 0),
        ({"region": "eu-north"}, 1),
        ({"region": "eu"}, 0),
        ({"state": registry_pb2.PROVIDER_STATE_DRAINED, "region": "eu-north", "model": MODEL}, 1),
    ],
)
async def test_providers_are_found_by_model_state_and_region(line: Line, filters: dict[str, Any], found: int) -> None:
    async with line.providers("router") as reader, line.providers("node") as node:
        watch = reader.Watch(registry_pb2.WatchRequest())
        await event_of(watch)
        await node.Register(registration(), timeout=PATIENCE_SECONDS)
        await event_of(watch)
        await drained(line)
        await event_of(watch)
        watch.cancel()
        request = registry_pb2.ListProvidersRequest(**filters)
        assert len((await reader.ListProviders(request, timeout=PATIENCE_SECONDS)).providers) == found


async def test_a_watch_is_resumed_by_epoch_and_sequence(line: Line) -> None:
    async with line.providers("router") as reader, line.providers("node") as node:
        watch = reader.Watch(registry_pb2.WatchRequest())
        first = await event_of(watch)
        watch.cancel()
        await node.Register(registration(), timeout=PATIENCE_SECONDS)
        await drained(line)
        watch = reader.Watch(registry_pb2.WatchRequest(epoch=first.epoch, sequence=first.sequence))
        held: dict[str, registry_pb2.Provider] = {}
        while not any(provider.drained_by for provider in held.values()):
            event = await event_of(watch)
            assert event.epoch == first.epoch
            assert event.sequence > first.sequence or event.WhichOneof("event") == "heartbeat"
            if event.WhichOneof("event") == "changed":
                held[event.changed.spiffe_id] = event.changed
        watch.cancel()
        again = reader.Watch(registry_pb2.WatchRequest(epoch="00" * 16, sequence=first.sequence))
        snapshot = (await event_of(again)).snapshot
        assert snapshot.state_digest == digest_of(held.values())
        again.cancel()


def digest_of(providers: Iterable[registry_pb2.Provider]) -> bytes:
    """As a watcher computes it, from what registry.proto says alone."""
    state = [
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
        for provider in sorted(providers, key=lambda provider: provider.spiffe_id)
    ]
    return hashlib.sha256(jcs.dumps(state)).digest()


async def test_sessions_are_listed_by_node_model_and_whether_they_are_current(line: Line) -> None:
    async with line.providers("router") as reader, line.providers("node") as node:
        watch = reader.Watch(registry_pb2.WatchRequest())
        await event_of(watch)
        registered = await node.Register(registration(), timeout=PATIENCE_SECONDS)
        await event_of(watch)

        async def listed(**filters: Any) -> list[registry_pb2.SessionSummary]:
            request = registry_pb2.ListSessionsRequest(**filters)
            return [*(await reader.ListSessions(request, timeout=PATIENCE_SECONDS)).sessions]

        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (all_of_them := await listed()):
                pass
        (summary,) = all_of_them
        assert (summary.session_id, summary.spiffe_id, [*summary.models]) == (registered.session_id, NODE, [MODEL])
        assert summary.current
        assert summary.expires_ms > summary.established_ms
        assert await listed(spiffe_id=NODE, model=MODEL, current=True) == all_of_them
        assert await listed(spiffe_id=NODE + "x") == await listed(model="other") == []
        await node.Deregister(registry_pb2.DeregisterRequest(), timeout=PATIENCE_SECONDS)
        await event_of(watch)
        watch.cancel()
        assert await listed(current=True) == []
        assert [session.current for session in await listed()] == [False]


async def test_a_session_edited_in_the_store_is_refused(line: Line) -> None:
    async with line.providers("router") as reader, line.providers("node") as node:
        registered = await node.Register(registration(), timeout=PATIENCE_SECONDS)
        bucket, key = line.registry.store.sessions, f"session.{registered.session_id.hex()}"
        stored = await bucket.get(key)
        assert stored is not None
        await bucket.put(key, stored.value.replace(b"asserted", b"unknown!"), stored.revision)
        request = registry_pb2.GetSessionRequest(session_id=registered.session_id)
        assert await refused(reader.GetSession(request, timeout=PATIENCE_SECONDS)) == (
            grpc.StatusCode.DATA_LOSS,
            "SESSION_DAMAGED",
        )


async def test_any_member_may_have_a_signed_policy(line: Line) -> None:
    for role in ("router", "node", "attestation"):
        async with line.providers(role) as reader:
            for version in (0, 3):
                answer = await reader.GetPolicy(
                    registry_pb2.GetPolicyRequest(version=version), timeout=PATIENCE_SECONDS
                )
                assert answer.signed_policy == b"version 3"
            assert await refused(
                reader.GetPolicy(registry_pb2.GetPolicyRequest(version=4), timeout=PATIENCE_SECONDS)
            ) == (grpc.StatusCode.NOT_FOUND, "POLICY_UNKNOWN")


async def test_a_page_that_this_service_did_not_give_is_refused(line: Line) -> None:
    async with line.providers("router") as reader:
        for request in (
            registry_pb2.ListProvidersRequest(page_size=1001),
            registry_pb2.ListProvidersRequest(page_token="next"),
        ):
            assert (await refused(reader.ListProviders(request, timeout=PATIENCE_SECONDS)))[1] == "PAGE_TOKEN_MALFORMED"
        sessions = registry_pb2.ListSessionsRequest(page_token="next")
        assert (await refused(reader.ListSessions(sessions, timeout=PATIENCE_SECONDS)))[1] == "PAGE_TOKEN_MALFORMED"


async def test_only_nodes_register_and_only_readers_read(line: Line) -> None:
    async with line.providers("router") as router, line.providers("node") as node:
        for call in (
            router.Register(registration(), timeout=PATIENCE_SECONDS),
            node.ListProviders(registry_pb2.ListProvidersRequest(), timeout=PATIENCE_SECONDS),
        ):
            assert await refused(call) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")


async def test_a_tenant_is_put_by_an_operator_and_found_by_a_router(line: Line) -> None:
    put = tenants_pb2.PutTenantRequest(signed_record=sign_tenant(RECORD, ADMIN))
    find = tenants_pb2.FindTenantRequest(api_key_sha256=bytes.fromhex(api_key_digest("sk-one")))
    async with line.tenants("operator") as operator, line.tenants("router") as router:
        assert await refused(router.FindTenant(find, timeout=PATIENCE_SECONDS)) == (
            grpc.StatusCode.NOT_FOUND,
            "API_KEY_UNKNOWN",
        )
        assert (await refused(router.PutTenant(put, timeout=PATIENCE_SECONDS)))[1] == "ROLE_NOT_ALLOWED"
        await operator.PutTenant(put, timeout=PATIENCE_SECONDS)
        found = await router.FindTenant(find, timeout=PATIENCE_SECONDS)
        assert found.signed_record == put.signed_record


async def test_operators_read_every_record_page_by_page_and_nobody_else_does(line: Line) -> None:
    records = [sign_tenant(replace(RECORD, tenant_id=f"{number:032x}", keys=()), ADMIN) for number in range(5)]
    async with line.tenants("operator") as operator, line.tenants("router") as router:
        empty = await operator.ListTenants(tenants_pb2.ListTenantsRequest(), timeout=PATIENCE_SECONDS)
        assert (list(empty.signed_records), empty.next_page_token) == ([], "")
        for signed in reversed(records):
            await operator.PutTenant(tenants_pb2.PutTenantRequest(signed_record=signed), timeout=PATIENCE_SECONDS)
        for page_size in (0, 1, 2, 5):
            found: list[bytes] = []
            token = ""
            while True:
                request = tenants_pb2.ListTenantsRequest(page_token=token, page_size=page_size)
                page = await operator.ListTenants(request, timeout=PATIENCE_SECONDS)
                assert len(page.signed_records) <= (page_size or 20)
                found.extend(page.signed_records)
                token = page.next_page_token
                if not token:
                    break
            assert found == records
        get = tenants_pb2.GetTenantRequest(tenant_id=(3).to_bytes(16, "big"))
        assert (await operator.GetTenant(get, timeout=PATIENCE_SECONDS)).signed_record == records[3]
        for call in (
            router.GetTenant(get, timeout=PATIENCE_SECONDS),
            router.ListTenants(tenants_pb2.ListTenantsRequest(), timeout=PATIENCE_SECONDS),
        ):
            assert (await refused(call))[1] == "ROLE_NOT_ALLOWED"
        for tenant_id in (bytes(16).replace(b"\0", b"\xff"), b"", b"*" * 16, b"x" * 17):
            unknown = tenants_pb2.GetTenantRequest(tenant_id=tenant_id)
            assert await refused(operator.GetTenant(unknown, timeout=PATIENCE_SECONDS)) == (
                grpc.StatusCode.NOT_FOUND,
                "TENANT_UNKNOWN",
            )
        for wrong in (
            tenants_pb2.ListTenantsRequest(page_size=51),
            tenants_pb2.ListTenantsRequest(page_token="next"),
        ):
            assert (await refused(operator.ListTenants(wrong, timeout=PATIENCE_SECONDS)))[1] == "PAGE_TOKEN_MALFORMED"


@pytest.mark.parametrize(
    ("signed", "reason"),
    [
        (b"{}", "TENANT_RECORD_MALFORMED"),
        (sign_tenant(RECORD, Ed25519PrivateKey.generate()), "TENANT_SIGNATURE_INVALID"),
        (sign_tenant(replace(RECORD, version=2), ADMIN), "TENANT_VERSION_NOT_NEXT"),
    ],
)
async def test_a_record_that_is_not_the_next_genuine_one_is_refused(line: Line, signed: bytes, reason: str) -> None:
    async with line.tenants("operator") as operator:
        request = tenants_pb2.PutTenantRequest(signed_record=signed)
        assert (await refused(operator.PutTenant(request, timeout=PATIENCE_SECONDS)))[1] == reason
