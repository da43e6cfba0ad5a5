"""No plaintext leaves a service, and nobody is let in without a certificate and the right role."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.inference.v1 import aci_pb2, aci_pb2_grpc, inference_pb2, inference_pb2_grpc
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc, tenants_pb2, tenants_pb2_grpc

from libs.aci import report as reports
from libs.client.attestation import establish
from libs.identity.certificate import der_of, spki_of_certificate
from libs.policy.signatures import parse_signed
from libs.rpc.channel import PeerUnreachable, fetch_leaf, open_channel
from libs.rpc.errors import reason_of
from libs.tee import evidence as evidences
from libs.tee.appraisal import AppraisalContext, SignedBy, appraise
from services.cli.mesh.roster import KMS_REPLICA, LEDGER_OTHERS
from tests.mesh.listeners import demands_tls, listeners_of
from tests.mesh.processes import descendants
from tests.mesh.running import RunningMesh

pytestmark = pytest.mark.mesh

MEMBERS = ("attestation", "kms", "broker", "ledger", "registry", "node", "router")
_CROWD = 40
_KNOCKS = 50
Call = Callable[[grpc.aio.Channel], Awaitable[Any]]


def channel(mesh: RunningMesh, role: str, *, certified: bool) -> grpc.aio.Channel:
    """A channel to a mesh listener, with the operator's certificate or none."""
    return open_channel(
        f"127.0.0.1:{mesh.ports[role]}",
        root_pem=mesh.file("mesh_ca"),
        server_name=f"{role}.{mesh.mesh['trust_domain']}",
        key_pem=mesh.file("operator_key") if certified else None,
        certificate_pem=mesh.file("operator_cert") if certified else None,
    )


def test_every_listener_demands_tls_but_the_pccs(mesh: RunningMesh) -> None:
    processes = descendants(mesh.up.pid)
    assert {entry["pid"] for entry in mesh.mesh["services"].values()} <= processes
    listening = listeners_of({mesh.up.pid, *processes})
    # The second KMS has its ports, and runs only where it is asked for.
    expected = {
        port
        for name, port in mesh.ports.items()
        if name != "pccs" and not name.startswith((KMS_REPLICA, *LEDGER_OTHERS))
    }
    assert expected <= listening
    in_clear = {port for port in listening if not demands_tls(port)}
    assert in_clear == {mesh.ports["pccs"]}


async def test_a_crowd_that_shakes_hands_at_once_ends_no_service(mesh: RunningMesh) -> None:
    """Nobody needs a certificate for that, and gRPC may free what it is about to use when its own is exchanged."""
    target, before = f"127.0.0.1:{mesh.ports['kms']}", mesh.mesh["services"]["kms"]

    async def knock() -> None:
        for _ in range(_KNOCKS):
            with suppress(PeerUnreachable):
                await fetch_leaf(target, server_name="kms.mesh.local", timeout=10)

    await asyncio.gather(*(knock() for _ in range(_CROWD)))
    async with channel(mesh, "kms", certified=True) as operator:
        stub = health_pb2_grpc.HealthStub(operator)  # type: ignore[no-untyped-call]
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert mesh.mesh["services"]["kms"] == before


@pytest.mark.parametrize("role", MEMBERS)
async def test_a_call_without_a_certificate_is_refused(mesh: RunningMesh, role: str) -> None:
    async with channel(mesh, role, certified=False) as nobody:
        stub = health_pb2_grpc.HealthStub(nobody)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert refusal.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)


@pytest.mark.parametrize("role", MEMBERS)
async def test_an_operator_may_ask_everyone_for_health(mesh: RunningMesh, role: str) -> None:
    async with channel(mesh, role, certified=True) as operator:
        stub = health_pb2_grpc.HealthStub(operator)  # type: ignore[no-untyped-call]
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    ("role", "call"),
    [
        (
            "kms",
            lambda to: kms_pb2_grpc.KmsServiceStub(to).ReleaseKey(
                kms_pb2.ReleaseKeyRequest(name="ledger-keyring"), timeout=5
            ),
        ),
        (
            "registry",
            lambda to: registry_pb2_grpc.ProviderRegistryServiceStub(to).Register(
                registry_pb2.RegisterRequest(endpoint="127.0.0.1:1"), timeout=5
            ),
        ),
        (
            "registry",
            lambda to: tenants_pb2_grpc.TenantServiceStub(to).FindTenant(
                tenants_pb2.FindTenantRequest(api_key_sha256=bytes(32)), timeout=5
            ),
        ),
        (
            "ledger",
            lambda to: ledger_pb2_grpc.LedgerServiceStub(to).OpenVault(
                ledger_pb2.OpenVaultRequest(tenant_id="00" * 16), timeout=5
            ),
        ),
        (
            "node",
            lambda to: (
                inference_pb2_grpc.InferenceServiceStub(to)
                .Infer(inference_pb2.InferRequest(endpoint="/v1/chat/completions", body=b"{}"), timeout=5)
                .read()
            ),
        ),
        (
            "node",
            lambda to: aci_pb2_grpc.AciServiceStub(to).GetReceipt(
                aci_pb2.GetReceiptRequest(id="rcpt-" + "0" * 24), timeout=5
            ),
        ),
    ],
    ids=["ReleaseKey", "Register", "FindTenant", "OpenVault", "Infer", "GetReceipt"],
)
async def test_a_call_of_the_wrong_role_is_refused_with_the_reason(mesh: RunningMesh, role: str, call: Call) -> None:
    async with channel(mesh, role, certified=True) as operator:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call(operator)
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(refusal.value) == "ROLE_NOT_ALLOWED"


async def test_the_clients_grpc_wants_an_api_key(mesh: RunningMesh) -> None:
    described = mesh.mesh
    async with open_channel(
        described["router_grpc"], root_pem=mesh.file("router_ca"), server_name="localhost"
    ) as nobody:
        request = inference_pb2.InferRequest(endpoint="/v1/chat/completions", body=b"{}", request_id="r")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await inference_pb2_grpc.InferenceServiceStub(nobody).Infer(request, timeout=5).read()
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason_of(refusal.value) == "API_KEY_INVALID"


async def test_a_node_proves_itself_to_an_operator_as_a_direct_service(mesh: RunningMesh) -> None:
    nonce = "5b" * 32
    async with channel(mesh, "node", certified=True) as operator:
        asked = aci_pb2.GetAttestationRequest(nonce=nonce)
        response = await aci_pb2_grpc.AciServiceStub(operator).GetAttestation(asked, timeout=20)
        shown = await evidence_pb2_grpc.EvidenceServiceStub(operator).GetEvidence(
            evidence_pb2.GetEvidenceRequest(), timeout=20
        )
    policy, now = parse_signed(mesh.file("policy")).policy, int(time.time())
    rules = policy.rules("node")
    ca = SignedBy(spki_of_certificate(der_of(mesh.file("mesh_ca"))), policy.evidence_max_age_seconds)
    judged = appraise(evidences.parse(shown.document), rules, AppraisalContext(now, None, ca, policy.version))
    # The GPUs that policy wants answer in the evidence: it claims the key that the report shows to be held now.
    assert rules.gpu_required
    assert judged.gpu is not None
    established = establish(response.report, nonce, replace(rules, gpu_required=False), now)
    assert established.serving == reports.DIRECT
    assert established.keyset.receipt_key("node-receipt").hex() == judged.workload_claims["receipt_key"]
    provenance = json.loads(response.report)["attestation"]["source_provenance"]
    assert provenance["image_provenance"] == {"digest_of": "sources"}


async def test_the_clients_grpc_gives_a_report_to_anyone(mesh: RunningMesh) -> None:
    described, nonce = mesh.mesh, "5a" * 32
    async with open_channel(
        described["router_grpc"], root_pem=mesh.file("router_ca"), server_name="localhost"
    ) as nobody:
        asked = aci_pb2.GetAttestationRequest(nonce=nonce)
        response = await aci_pb2_grpc.AciServiceStub(nobody).GetAttestation(asked, timeout=20)
    report = reports.parse(response.report)
    slot = reports.slot(reports.report_data(report.keyset.digest, nonce))
    assert json.loads(response.report)["attestation"]["evidence"]["quote_report_data"] == slot.hex()
