"""Every registered node is appraised again and again, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from teemesh.attestation.v1 import attestation_pb2_grpc as pb_grpc
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.registry.v1 import registry_pb2

from libs.audit.repetition import repeat
from libs.identity.member import Member
from libs.rpc.channel import MESSAGE_BYTES
from libs.rpc.middleware import public_middleware
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from libs.rpc.server import serving
from libs.tee.archived import Bundle
from services.attestation.nodes import Listed, fetch_evidence
from services.attestation.servicer import AttestationServicer, attestation_binding
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore, hear
from tests.fakes.refusals import refusal
from tests.fakes.running_attestation import NODE, Attestation, bundle, cover, watched


def provider(member: Member, port: int, **changes: Any) -> registry_pb2.Provider:
    certificate = member.identity.current.certificate
    given: dict[str, Any] = {
        "spiffe_id": certificate.spiffe_id,
        "endpoint": f"127.0.0.1:{port}",
        "evidence_digest": certificate.evidence_digest,
        "spki_sha256": certificate.spki_sha256,
        "lease_until_ms": int((Clock().now + 600) * 1000),
    }
    return registry_pb2.Provider(**{**given, **changes})


@asynccontextmanager
async def sweeping(attestation: Attestation) -> AsyncIterator[None]:
    tasks = [
        asyncio.create_task(attestation.watching.leases.follow()),
        asyncio.create_task(attestation.watching.sweep.run(3600)),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_every_registered_node_is_appraised_and_counted(
    mesh: JoinedMesh, kms: KmsCore, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    before = await cover(stub)
    assert (before.live_leases, before.share, before.registry_watched, before.registry_heard_at_ms) == (0, 0, False, 0)
    async with mesh.member("node", kms, claims={"models": []}) as node, node.serve([]) as running:
        snapshot = registry_pb2.Snapshot(providers=[provider(node, running.port)])
        attestation.registry.events.put_nowait(registry_pb2.WatchResponse(snapshot=snapshot))
        async with sweeping(attestation):
            (event,) = await watched(stub, 1000, 1)
            assert (event.made.spiffe_id, event.made.refusal) == (NODE, "")
            data = await bundle(stub, event.made.record_digest)
            assert repeat(data) == Bundle.decode(data).record.encode()
            covered = await cover(stub, 3600)
            assert (covered.live_leases, covered.covered, covered.share) == (1, 1, 1.0)
            assert covered.registry_watched
            assert covered.registry_heard_at_ms > 0
            # A policy that no longer allows what was measured.
            policy = attestation.member.policy
            policy.accept(mesh.successor(policy.current, roles=mesh.without("node")))
            hear(policy, Clock().now)
            (again,) = await watched(stub, 1001, 1)
            assert (again.made.refusal, again.made.policy_version) == ("MEASUREMENT_NOT_ALLOWED", 2)


async def test_coverage_fits_an_answer_however_many_leases_are_not_covered(
    attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    providers = [
        registry_pb2.Provider(
            spiffe_id=f"{number:06d}".ljust(256, "x"),
            evidence_digest=bytes(32),
            spki_sha256=bytes(32),
            lease_until_ms=int((Clock().now + 600) * 1000),
        )
        for number in range(20_000)
    ]
    attestation.watching.leases.take(registry_pb2.WatchResponse(snapshot=registry_pb2.Snapshot(providers=providers)))
    coverage = await cover(stub)
    assert (coverage.live_leases, coverage.covered, coverage.share) == (20_000, 0, 0.0)
    assert [each.spiffe_id for each in coverage.uncovered] == [each.spiffe_id for each in providers[:10_000]]
    # What nodes refuse with may be longer than this service's own reasons.
    for each in coverage.uncovered:
        each.reason, each.evidence_age_seconds = "R" * 63, 2**32 - 1
    assert coverage.ByteSize() < MESSAGE_BYTES


async def test_a_lease_at_a_host_that_cannot_be_ends_no_sweep(
    attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    hosts = ("a..b", "a" * 64, "a\0b")
    providers = [
        registry_pb2.Provider(
            spiffe_id=f"spiffe://{TRUST_DOMAIN}/node/{number}",
            endpoint=f"{host}:443",
            evidence_digest=bytes(32),
            spki_sha256=bytes(32),
            lease_until_ms=int((Clock().now + 600) * 1000),
        )
        for number, host in enumerate(hosts)
    ]
    attestation.watching.leases.take(registry_pb2.WatchResponse(snapshot=registry_pb2.Snapshot(providers=providers)))
    await attestation.watching.sweep.sweep()
    assert [each.reason for each in (await cover(stub)).uncovered] == ["PEER_UNREACHABLE"] * 3


async def test_a_lease_that_does_not_fit_the_node_is_not_covered(
    mesh: JoinedMesh, kms: KmsCore, attestation: Attestation
) -> None:
    async with mesh.member("node", kms, claims={"models": []}) as node, node.serve([]) as running:
        honest = provider(node, running.port)
        for changes, reason in (
            ({"spki_sha256": bytes(32)}, "NODE_REPLACED"),
            ({"spiffe_id": f"spiffe://{TRUST_DOMAIN}/node/2"}, "NODE_REPLACED"),
            ({"evidence_digest": bytes(32)}, "EVIDENCE_MISMATCH"),
            ({"endpoint": "http://127.0.0.1"}, "ENDPOINT_MALFORMED"),
            ({"endpoint": "127.0.0.1:99999"}, "ENDPOINT_MALFORMED"),
            ({"endpoint": "127.0.0.1:9"}, "PEER_UNREACHABLE"),
            ({"endpoint": attestation.target}, "PEER_UNREACHABLE"),
        ):
            listed = provider(node, running.port, **changes)
            assert await refusal(fetch_evidence(attestation.member, _listed(listed))) == reason
        shown = await fetch_evidence(attestation.member, _listed(honest))
        assert shown.document == node.identity.current.evidence.document


class Liar(evidence_pb2_grpc.EvidenceServiceServicer):
    """A node that shows another document than its certificate names."""

    async def GetEvidence(self, request: Any, context: Any) -> evidence_pb2.GetEvidenceResponse:  # noqa: N802
        return evidence_pb2.GetEvidenceResponse(document=b"{}")

    async def PresentEvidence(self, request: Any, context: Any) -> evidence_pb2.PresentEvidenceResponse:  # noqa: N802
        return evidence_pb2.PresentEvidenceResponse()

    async def WatchRenewals(  # noqa: N802
        self, request: evidence_pb2.WatchRenewalsRequest, context: Any
    ) -> AsyncIterator[evidence_pb2.WatchRenewalsResponse]:
        yield evidence_pb2.WatchRenewalsResponse()


async def test_a_node_that_shows_another_document_is_found_out(
    mesh: JoinedMesh, kms: KmsCore, attestation: Attestation
) -> None:
    name = "teemesh.evidence.v1.EvidenceService"
    lying = ServiceBinding(
        name=name,
        add=lambda server: evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(Liar(), server),
        methods={f"/{name}/GetEvidence": MethodRule(roles=ANY_ROLE, lease=False)},
    )
    async with mesh.member("node", kms, claims={"models": []}) as node:
        current = node.identity.current
        credentials = grpc.ssl_server_credentials(
            [(current.key_pem, current.certificate.pem)], root_certificates=node.ca_pem, require_client_auth=True
        )
        middleware = public_middleware(lying.methods)
        async with serving("127.0.0.1:0", credentials, [lying], middleware, drain_seconds=0) as running:
            listed = _listed(provider(node, running.port))
            assert await refusal(fetch_evidence(attestation.member, listed)) == "EVIDENCE_MISMATCH"


def _listed(provider: registry_pb2.Provider) -> Listed:
    return Listed(provider.spiffe_id, provider.endpoint, provider.evidence_digest, provider.spki_sha256)


async def test_a_service_without_a_registry_says_so(mesh: JoinedMesh, kms: KmsCore, attestation: Attestation) -> None:
    given = attestation
    bare = AttestationServicer(given.challenges, given.appraiser, given.archive, given.feed, None)
    async with (
        mesh.member("attestation", kms, instance="2") as second,
        second.serve([attestation_binding(bare)]) as running,
        mesh.member("router", kms, instance="2") as router,
    ):
        channel = await router.peer("attestation", f"127.0.0.1:{running.port}").channel(10)
        assert await refusal(cover(pb_grpc.AttestationServiceStub(channel))) == "REGISTRY_NOT_CONFIGURED"
