"""The attestation service on both of its listeners."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from teemesh.attestation.v1 import attestation_pb2 as pb
from teemesh.attestation.v1 import attestation_pb2_grpc as pb_grpc
from teemesh.attestation.v1 import collateral_pb2, collateral_pb2_grpc
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs import jcs
from libs.audit.repetition import repeat
from libs.errors import MeshError
from libs.identity.bootstrap_leaf import make_bootstrap_leaf
from libs.identity.certificate import pem_of, spki_of_certificate
from libs.identity.challenges import Challenges
from libs.identity.collateral import AttestationCollateral
from libs.identity.member import Member
from libs.rpc.channel import MESSAGE_BYTES, fetch_leaf, open_channel
from libs.rpc.errors import remote_errors
from libs.rpc.middleware import public_middleware
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from libs.rpc.server import serving
from libs.tee.archived import Bundle, Refused
from libs.tee.challenge import Challenge
from libs.tee.ear import CONTRAINDICATED, verify_ear
from services.attestation.__main__ import signer, watch
from services.attestation.appraisal import Appraisals, Appraiser
from services.attestation.archive import Archive
from services.attestation.collateral import CollateralCache
from services.attestation.feed import Feed
from services.attestation.gpu_tokens import GpuTokens
from services.attestation.nodes import Listed, fetch_evidence
from services.attestation.servicer import (
    AttestationServicer,
    CollateralServicer,
    Watching,
    attestation_binding,
    collateral_binding,
    mesh_collateral_binding,
)
from services.devtee.vendors import serving_vendors
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore, hear
from tests.fakes.routers import RegistryTwin

PATIENCE_SECONDS = 20.0
NODE = f"spiffe://{TRUST_DOMAIN}/node/1"


@asynccontextmanager
async def collateral_listener(mesh: JoinedMesh) -> AsyncIterator[str]:
    leaf = make_bootstrap_leaf("attestation", TRUST_DOMAIN)
    async with serving_vendors("127.0.0.1", 0, mesh.machine, lambda: int(Clock().now)) as url:
        binding = collateral_binding(CollateralServicer(CollateralCache(url, 10), GpuTokens(url, 10)))
        middleware = public_middleware(binding.methods)
        async with serving("127.0.0.1:0", leaf.credentials, [binding], middleware, drain_seconds=0) as running:
            yield f"127.0.0.1:{running.port}"


@dataclass(frozen=True, slots=True)
class Attestation:
    member: Member
    target: str
    archive: Archive
    feed: Feed
    challenges: Challenges
    appraiser: Appraiser
    clock: Clock
    watching: Watching
    registry: RegistryTwin


def registry_binding(registry: RegistryTwin) -> ServiceBinding:
    name = "teemesh.registry.v1.ProviderRegistryService"
    return ServiceBinding(
        name=name,
        add=lambda server: registry_pb2_grpc.add_ProviderRegistryServiceServicer_to_server(registry, server),
        methods={f"/{name}/Watch": MethodRule(roles=frozenset({"attestation"}), long_lived=True)},
    )


@pytest.fixture
async def registry() -> RegistryTwin:
    return RegistryTwin()  # type: ignore[abstract]  # The other methods stay unimplemented.


@pytest.fixture
async def attestation(mesh: JoinedMesh, kms: KmsCore, registry: RegistryTwin) -> AsyncIterator[Attestation]:
    async with (
        mesh.member("registry", kms) as registry_member,
        registry_member.serve([registry_binding(registry)]) as listening,
        mesh.member("attestation", kms) as member,
        serving_vendors("127.0.0.1", 0, mesh.machine, lambda: int(Clock().now)) as vendors,
    ):
        archive, feed, clock = Archive(member.settings.state_dir / "archive", 1 << 30), Feed(1000), Clock()
        await archive.open()
        appraisals = Appraisals(archive, feed)
        current = member.identity.current
        challenges = Challenges(member.spiffe_id, lambda: (current.key, current.certificate.der), clock)
        appraiser = Appraiser(challenges, member.policy, appraisals, lambda: signer(member), clock)
        watching = watch(member, f"127.0.0.1:{listening.port}", archive, appraisals)
        servicer = AttestationServicer(challenges, appraiser, archive, feed, watching)
        collateral = mesh_collateral_binding(CollateralServicer(CollateralCache(vendors, 10), GpuTokens(vendors, 10)))
        async with member.serve([attestation_binding(servicer), collateral]) as running:
            target = f"127.0.0.1:{running.port}"
            yield Attestation(member, target, archive, feed, challenges, appraiser, clock, watching, registry)


@pytest.fixture
async def channel(mesh: JoinedMesh, kms: KmsCore, attestation: Attestation) -> AsyncIterator[grpc.aio.Channel]:
    async with mesh.member("router", kms) as router:
        yield await router.peer("attestation", attestation.target).channel(10)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> pb_grpc.AttestationServiceStub:
    return pb_grpc.AttestationServiceStub(channel)


async def refusal(call: Any) -> str:
    return (await refused(call)).reason


async def refused(call: Any) -> MeshError:
    with pytest.raises(MeshError) as error, remote_errors():
        await call
    return error.value


async def challenge(stub: pb_grpc.AttestationServiceStub, purpose: str = "appraisal") -> Challenge:
    return Challenge.decode(
        (await stub.CreateChallenge(pb.CreateChallengeRequest(purpose=purpose), timeout=10)).challenge
    )


def appraise(stub: pb_grpc.AttestationServiceStub, document: bytes, role: str) -> Any:
    return stub.Appraise(pb.AppraiseRequest(document=document, role=role), timeout=10)


def ledger_evidence(mesh: JoinedMesh, asked: Challenge) -> bytes:
    return mesh.evidence("ledger", asked, ec.generate_private_key(ec.SECP256R1())).document


async def bundle(stub: pb_grpc.AttestationServiceStub, record_digest: bytes) -> bytes:
    request = pb.GetAppraisalRequest(record_digest=record_digest)
    return (await stub.GetAppraisal(request, timeout=10)).bundle


async def test_a_challenge_is_signed_by_the_service_and_answered_once(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    asked = await challenge(stub)
    asked.verify_signed(attestation.member.identity.current.certificate.spki, int(Clock().now), 60)
    evidence = mesh.evidence("ledger", asked, ec.generate_private_key(ec.SECP256R1()))
    verdict = json.loads((await appraise(stub, evidence.document, "ledger")).appraisal)
    assert (verdict["role"], verdict["evidence_digest"]) == ("ledger", evidence.digest.hex())
    assert await refusal(appraise(stub, evidence.document, "ledger")) == "CHALLENGE_NOT_OPEN"


async def test_challenges_that_are_not_open_are_all_refused_alike(
    mesh: JoinedMesh, kms: KmsCore, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    """Spent, expired, of another purpose, of another challenger, and one whose nonce was cut or changed."""
    spent = ledger_evidence(mesh, await challenge(stub))
    await appraise(stub, spent, "ledger")
    old = ledger_evidence(mesh, await challenge(stub))
    other_purpose = [ledger_evidence(mesh, await challenge(stub, purpose)) for purpose in ("evidence", "appraisal ")]
    other_issuer = ledger_evidence(mesh, kms.challenges.issue("appraisal"))
    asked = await challenge(stub)
    own = attestation.member.identity.current
    forged = Challenge.signed(asked.issuer, "appraisal", asked.issued_at, own.key, own.certificate.der)
    refusals = [await refused(appraise(stub, document, "ledger")) for document in (spent, *other_purpose, other_issuer)]
    refusals.append(await refused(appraise(stub, ledger_evidence(mesh, forged), "ledger")))
    attestation.clock.now += 61
    refusals.append(await refused(appraise(stub, old, "ledger")))
    assert {(each.reason, str(each)) for each in refusals} == {("CHALLENGE_NOT_OPEN", str(refusals[0]))}
    # None of them was judged, so none of them was recorded.
    assert attestation.feed._sequence == 1001


async def test_a_truncated_nonce_is_refused_like_any_other_that_is_not_open(attestation: Attestation) -> None:
    asked = attestation.challenges.issue("appraisal")
    for nonce in (asked.nonce[:31], asked.nonce[:16], b"", asked.nonce + b"\0"):
        with pytest.raises(MeshError) as error:
            attestation.challenges.spend(nonce)
        assert error.value.reason == "CHALLENGE_NOT_OPEN"
    attestation.challenges.spend(asked.nonce)


async def test_a_challenge_whose_random_part_was_cut_is_no_challenge(
    mesh: JoinedMesh, stub: pb_grpc.AttestationServiceStub
) -> None:
    value = jcs.loads_object(ledger_evidence(mesh, await challenge(stub)))
    value["challenge"]["document"]["random"] = value["challenge"]["document"]["random"][:-2]
    assert await refusal(appraise(stub, jcs.dumps(value), "ledger")) == "CHALLENGE_MALFORMED"


async def test_the_verdict_comes_signed_for_everybody_in_the_mesh(
    mesh: JoinedMesh, kms: KmsCore, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    asked = await challenge(stub)
    response = await appraise(stub, ledger_evidence(mesh, asked), "ledger")
    ca_spki = spki_of_certificate(kms.ca.certificate)
    result = verify_ear(response.result, ca_spki, int(attestation.clock.now), nonce=asked.nonce)
    assert result.issuer == attestation.member.spiffe_id
    assert result.appraisal == json.loads(response.appraisal)
    assert result.status == {"cpu": CONTRAINDICATED}  # The mesh of the tests has a development root.
    assert result.claims["teemesh"]["record_digest"] == response.record_digest.hex()


async def test_refused_evidence_has_spent_its_challenge_and_is_recorded(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    document = ledger_evidence(mesh, await challenge(stub))
    events = attestation.feed.follow(0)
    told = asyncio.ensure_future(anext(events))
    assert await refusal(appraise(stub, document, "kms")) == "MEASUREMENT_NOT_ALLOWED"
    assert await refusal(appraise(stub, document, "ledger")) == "CHALLENGE_NOT_OPEN"
    made = (await told).made
    assert made is not None
    outcome = Bundle.decode(await bundle(stub, made.record_digest)).record.outcome
    assert isinstance(outcome, Refused)
    assert (outcome.reason, outcome.step, made.refusal) == ("MEASUREMENT_NOT_ALLOWED", 8, "MEASUREMENT_NOT_ALLOWED")


async def test_what_never_was_evidence_pushes_nothing_out_of_the_archive(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    good = await appraise(stub, ledger_evidence(mesh, await challenge(stub)), "ledger")
    attestation.archive._files._limit_bytes = 200 * 1024
    copied = jcs.loads_object(ledger_evidence(mesh, await challenge(stub)))
    for size in range(3):
        padded = {**copied, "challenge": (await challenge(stub)).to_json(), "app_compose": "x" * (150_000 + size)}
        assert await refusal(appraise(stub, jcs.dumps(padded), "ledger")) == "REPORT_DATA_MISMATCH"
    assert await bundle(stub, good.record_digest)
    for event in await watched(stub, 1001, 3):
        assert (event.made.refusal, event.made.record_digest) == ("REPORT_DATA_MISMATCH", b"")
        request = pb.GetEvidenceRequest(digest=event.made.evidence_digest)
        assert await refusal(stub.GetEvidence(request, timeout=10)) == "EVIDENCE_UNKNOWN"


async def test_an_unknown_role_and_a_broken_document_are_refused(
    mesh: JoinedMesh, stub: pb_grpc.AttestationServiceStub
) -> None:
    document = ledger_evidence(mesh, await challenge(stub))
    for role in ("nobody", "", "operator", "x" * 1000):
        assert await refusal(appraise(stub, document, role)) == "ROLE_UNKNOWN"
    assert await refusal(appraise(stub, document[:-1], "ledger")) == "JSON_MALFORMED"
    await appraise(stub, document, "ledger")  # Neither of them was judged, so the challenge is still open.


async def test_a_purpose_that_nobody_could_read_back_is_refused(stub: pb_grpc.AttestationServiceStub) -> None:
    for purpose in ("", "x" * 257):
        call = stub.CreateChallenge(pb.CreateChallengeRequest(purpose=purpose), timeout=10)
        assert await refusal(call) == "CHALLENGE_MALFORMED"


async def test_a_service_whose_policy_is_stale_appraises_nobody(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    policy = attestation.member.policy
    policy.accept(mesh.successor(policy.current, not_after=mesh.draft["not_before"] + 60))
    assert await refusal(appraise(stub, b"{}", "ledger")) == "POLICY_NOT_VALID_NOW"


async def test_while_policy_is_stale_no_challenge_is_spent(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    document = ledger_evidence(mesh, await challenge(stub))
    policy = attestation.member.policy
    policy.accept(mesh.successor(policy.current, not_after=mesh.draft["not_before"] + 60))
    for _ in range(2):
        assert await refusal(attestation.appraiser.appraise(document, "ledger")) == "POLICY_NOT_VALID_NOW"


async def test_archived_evidence_comes_back_by_its_digest(
    mesh: JoinedMesh, stub: pb_grpc.AttestationServiceStub
) -> None:
    document = ledger_evidence(mesh, await challenge(stub))
    verdict = json.loads((await appraise(stub, document, "ledger")).appraisal)
    request = pb.GetEvidenceRequest(digest=bytes.fromhex(verdict["evidence_digest"]))
    assert (await stub.GetEvidence(request, timeout=10)).document == document
    for digest in (b"", bytes(32)):
        assert await refusal(stub.GetEvidence(pb.GetEvidenceRequest(digest=digest), timeout=10)) == "EVIDENCE_UNKNOWN"
        assert await refusal(bundle(stub, digest)) == "APPRAISAL_UNKNOWN"


REPEAT = """
import sys

def refuse(event, arguments):
    if event.startswith("socket."):
        raise PermissionError(f"{event}: this process has no network")

sys.addaudithook(refuse)
import socket
try:
    socket.socket()
except PermissionError:
    pass
else:
    sys.exit("the hook is not at work")

from libs.audit.repetition import repeat
sys.stdout.buffer.write(repeat(sys.stdin.buffer.read()))
"""

CUT_OFF = """
import socket, sys
from libs.audit.repetition import repeat

data = sys.stdin.buffer.read()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
except OSError:
    sys.stdout.buffer.write(repeat(data))
else:
    sys.exit("the network is there")
"""


def offline(command: Sequence[str], data: bytes) -> bytes:
    # Another hash seed than this process's: what depends on the order of a set would show.
    environment = {
        "PYTHONPATH": f"{Path.cwd()}:{Path.cwd() / 'gen'}",
        "PYTHONHASHSEED": "4711",
        "PATH": "/usr/bin:/bin",
    }
    finished = subprocess.run(
        command, input=data, capture_output=True, check=False, timeout=PATIENCE_SECONDS, env=environment
    )
    assert finished.returncode == 0, finished.stderr.decode()
    return finished.stdout


async def archived_bundles(mesh: JoinedMesh, stub: pb_grpc.AttestationServiceStub, feed: Feed) -> list[bytes]:
    """One that was accepted and one that was refused, from the archive of a running service."""
    events = feed.follow(0)
    told = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    accepted = await appraise(stub, ledger_evidence(mesh, await challenge(stub)), "ledger")
    await told
    await refused(appraise(stub, ledger_evidence(mesh, await challenge(stub)), "kms"))
    made = (await anext(events)).made
    assert made is not None
    return [await bundle(stub, accepted.record_digest), await bundle(stub, made.record_digest)]


async def test_a_past_appraisal_is_repeated_by_a_process_that_may_open_no_socket(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    for data in await archived_bundles(mesh, stub, attestation.feed):
        record = Bundle.decode(data).record.encode()
        assert repeat(data) == record
        assert await asyncio.to_thread(offline, [sys.executable, "-c", REPEAT], data) == record


def namespaces_are_permitted() -> bool:
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not namespaces_are_permitted(), reason="this machine permits no network namespace (unshare -rn)")
async def test_a_past_appraisal_is_repeated_with_the_network_cut_off(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    host, port = attestation.target.split(":")
    for data in await archived_bundles(mesh, stub, attestation.feed):
        command = ["unshare", "-rn", sys.executable, "-c", CUT_OFF, host, port]
        assert await asyncio.to_thread(offline, command, data) == Bundle.decode(data).record.encode()


async def watched(stub: pb_grpc.AttestationServiceStub, after: int, count: int) -> list[pb.WatchAppraisalsResponse]:
    call = stub.WatchAppraisals(pb.WatchAppraisalsRequest(after_sequence=after))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return [await call.read() for _ in range(count)]  # type: ignore[misc]
    finally:
        call.cancel()


async def test_watchers_are_told_of_every_appraisal_and_go_on_where_they_were(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    accepted = await appraise(stub, ledger_evidence(mesh, await challenge(stub)), "ledger")
    await refused(appraise(stub, ledger_evidence(mesh, await challenge(stub)), "kms"))
    first, second = await watched(stub, 1000, 2)
    assert [each.sequence for each in (first, second)] == [1001, 1002]
    assert first.made.record_digest == accepted.record_digest
    assert [first.made.refusal, second.made.refusal] == ["", "MEASUREMENT_NOT_ALLOWED"]
    assert (first.made.role, first.made.spiffe_id, first.made.policy_version) == ("ledger", "", 1)
    assert await watched(stub, 1001, 1) == [second]


@pytest.mark.parametrize("after", [999, 1001])
async def test_a_watch_from_where_nothing_is_held_is_refused(stub: pb_grpc.AttestationServiceStub, after: int) -> None:
    call = stub.WatchAppraisals(pb.WatchAppraisalsRequest(after_sequence=after))
    assert await refusal(call.read()) == "SEQUENCE_NOT_HELD"


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


async def cover(stub: pb_grpc.AttestationServiceStub, max_age_seconds: int = 0) -> pb.GetCoverageResponse:
    return await stub.GetCoverage(pb.GetCoverageRequest(max_age_seconds=max_age_seconds), timeout=10)


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


OBSERVING: list[Callable[[pb_grpc.AttestationServiceStub], Any]] = [
    lambda stub: stub.GetCoverage(pb.GetCoverageRequest(), timeout=10),
    lambda stub: stub.WatchAppraisals(pb.WatchAppraisalsRequest()).read(),
]


@pytest.mark.parametrize("observe", OBSERVING)
async def test_a_node_may_not_watch_the_others(
    mesh: JoinedMesh, kms: KmsCore, attestation: Attestation, observe: Callable[[Any], Any]
) -> None:
    async with mesh.member("node", kms, claims={"models": []}) as node:
        channel = await node.peer("attestation", attestation.target).channel(10)
        assert await refusal(observe(pb_grpc.AttestationServiceStub(channel))) == "ROLE_NOT_ALLOWED"


async def test_collateral_is_served_on_the_mesh_listener_too(mesh: JoinedMesh, channel: grpc.aio.Channel) -> None:
    stub = collateral_pb2_grpc.CollateralServiceStub(channel)
    request = collateral_pb2.GetCollateralRequest(quote=mesh.tds["router"].quote(b"x"))
    assert (await stub.GetCollateral(request, timeout=10)).valid_until_ms > Clock().now * 1000


async def test_collateral_comes_without_a_certificate_and_makes_evidence_verify(mesh: JoinedMesh) -> None:
    async with collateral_listener(mesh) as address:
        clock = Clock()
        source = AttestationCollateral(address, TRUST_DOMAIN, clock)
        quote = mesh.tds["router"].quote(b"x")
        collateral = await source.collateral(quote)
        assert collateral.is_current(int(clock.now))
        clock.now += 3599
        assert await source.collateral(quote) is collateral
        clock.now += 1
        newer = await source.collateral(quote)
        assert newer is not collateral
    clock.now += 3600
    assert await source.collateral(quote) is newer  # Kept: the service is gone.
    clock.now += 40 * 86400
    assert await refusal(source.collateral(quote)) == "PEER_UNREACHABLE"


async def test_what_is_no_quote_gets_no_collateral(mesh: JoinedMesh) -> None:
    name = f"attestation-bootstrap.{TRUST_DOMAIN}"
    async with collateral_listener(mesh) as address:
        leaf = await fetch_leaf(address, server_name=name, timeout=10)
        async with open_channel(address, root_pem=pem_of(leaf), server_name=name) as channel:
            stub = collateral_pb2_grpc.CollateralServiceStub(channel)
            call = stub.GetCollateral(collateral_pb2.GetCollateralRequest(quote=b"quote"), timeout=10)
            assert await refusal(call) == "QUOTE_MALFORMED"
