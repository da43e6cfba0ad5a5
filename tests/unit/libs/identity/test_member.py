"""Joining for real: devtee's guest agent and PCCS, the attestation service's and the KMS's bootstrap listeners."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.errors import MeshError
from libs.identity.authority import Issued
from libs.identity.challenges import Challenges
from libs.identity.member import MeasuredConfigurationMismatch, join, open_guest
from libs.identity.renewal import Identity, Prover
from libs.identity.statements import KmsStatements, StatementsEnded, follow_statements, watch_statements
from libs.policy.revocation import RevocationKind
from libs.rpc.policies import MethodRule, ServiceBinding
from libs.tee.appraisal import AppraisalContext, OwnNonce, appraise
from libs.tee.dstack import Guest
from services.kms.issuance import ISSUANCE
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.joining import surroundings
from tests.fakes.running_kms import running_kms


async def test_a_service_joins_and_follows_policy(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with surroundings(mesh, kms) as around, join(around.settings, "router", {"log_key": "ab"}) as member:
        assert member.spiffe_id == f"spiffe://{TRUST_DOMAIN}/router/1"
        assert member.identity.current.evidence.claims == {"role": "router", "log_key": "ab"}
        first = member.identity.current
        async with asyncio.timeout(30):
            for version in (2, 3):
                kms.policy.accept(mesh.successor(kms.policy.current))
                assert (await member.policy.advanced()).version == version
            renewed, _ = await asyncio.gather(member.identity.renewed(), member.identity.obtain())
            assert renewed is member.identity.current is not first
    kept = [path.name for path in sorted(around.settings.state_dir.glob("policy/*"))]
    assert kept == ["1.json", "2.json", "3.json"]


async def test_a_service_may_claim_more_and_every_later_credential_claims_it_too(
    mesh: JoinedMesh, kms: KmsCore
) -> None:
    async with surroundings(mesh, kms) as around, join(around.settings, "router", {"log_key": "ab"}) as member:
        before = member.identity.current
        claimed = await member.identity.claim({"receipt_key": "cd"})
        assert claimed is member.identity.current is not before
        said = {"role": "router", "log_key": "ab", "receipt_key": "cd"}
        assert claimed.evidence.claims == said
        await member.identity.obtain()
        assert member.identity.current is not claimed
        assert member.identity.current.evidence.claims == said


async def test_what_is_refused_to_be_claimed_is_claimed_by_no_later_credential(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with surroundings(mesh, kms) as around, join(around.settings, "router", {"log_key": "ab"}) as member:
        before = member.identity.current
        with pytest.raises(MeshError) as refusal:
            await member.identity.claim({"role": "ledger"})
        assert refusal.value.reason == "MEASUREMENT_NOT_ALLOWED"
        assert member.identity.current is before
        await member.identity.obtain()
        assert member.identity.current.evidence.claims == {"role": "router", "log_key": "ab"}


async def test_missed_versions_are_all_walked_through(mesh: JoinedMesh, kms: KmsCore) -> None:
    for _ in range(3):
        kms.policy.accept(mesh.successor(kms.policy.current))
    async with running_kms(mesh, kms) as running, mesh.member("router", kms) as router:
        statements = KmsStatements(router.peer("kms", running.target), router.identity)
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            following = tasks.create_task(follow_statements(statements, router.policy, 0.05))
            while router.policy.current.version < 4:
                await router.policy.advanced()
            following.cancel()
        assert router.policy.current.digest == kms.policy.current.digest


async def test_a_statement_by_another_key_than_the_cas_is_refused(mesh: JoinedMesh, kms: KmsCore) -> None:
    class OtherCa:
        ca_certificate = mesh.kms("other", root=bytes(32)).ca.certificate

    async with running_kms(mesh, kms) as running, mesh.member("router", kms) as router:
        statements = KmsStatements(router.peer("kms", running.target), OtherCa())  # type: ignore[arg-type]
        with pytest.raises(MeshError) as error:
            await watch_statements(statements, router.policy)
    assert error.value.reason == "STATEMENT_SIGNATURE_INVALID"


class SilentKms(kms_pb2_grpc.KmsServiceServicer):
    """Takes a watch and never says anything."""

    async def WatchStatements(  # noqa: N802
        self, request: kms_pb2.WatchStatementsRequest, context: Any
    ) -> AsyncIterator[kms_pb2.WatchStatementsResponse]:
        await asyncio.Event().wait()
        yield kms_pb2.WatchStatementsResponse()


async def test_a_kms_that_gives_no_sign_of_life_is_not_waited_for(mesh: JoinedMesh, kms: KmsCore) -> None:
    servicer = SilentKms()  # type: ignore[abstract]  # The other methods stay unimplemented.
    name = "teemesh.kms.v1.KmsService"
    binding = ServiceBinding(
        name,
        lambda server: kms_pb2_grpc.add_KmsServiceServicer_to_server(servicer, server),
        {f"/{name}/WatchStatements": MethodRule(roles=frozenset({"router"}), long_lived=True)},
    )
    async with (
        mesh.member("kms", kms) as silent,
        silent.serve([binding]) as serving_it,
        mesh.member("router", kms) as router,
        asyncio.timeout(20),
    ):
        peer = router.peer("kms", f"127.0.0.1:{serving_it.port}")
        with pytest.raises(StatementsEnded, match="no sign of life"):
            await watch_statements(KmsStatements(peer, router.identity, silence_seconds=0.05), router.policy)


async def test_a_service_told_to_be_what_it_was_not_measured_as_does_not_start(mesh: JoinedMesh) -> None:
    async with mesh.guest(mesh.tds["router"]) as socket:
        settings = mesh.settings("ledger", "1", socket)
        with pytest.raises(MeasuredConfigurationMismatch, match="configured as ledger"):
            async with join(settings, "ledger", {}):
                pass
        elsewhere = mesh.settings("router", "1", socket, trust_domain="other.test")
        with pytest.raises(MeasuredConfigurationMismatch, match=r"other\.test"):
            async with open_guest(elsewhere, "router"):
                pass


async def test_a_service_that_policy_does_not_allow_is_told_at_once(mesh: JoinedMesh, kms: KmsCore) -> None:
    kms.policy.accept(mesh.successor(kms.policy.current, roles=mesh.without("router")))
    async with surroundings(mesh, kms) as around:
        with pytest.raises(MeshError) as error:
            async with join(around.settings, "router", {}):
                pass
    assert error.value.reason == "MEASUREMENT_NOT_ALLOWED"


async def test_a_role_that_needs_a_gpu_shows_one_that_answered_the_same_challenge(
    mesh: JoinedMesh, kms: KmsCore
) -> None:
    mesh.require_gpu("router")
    kms = mesh.kms()
    async with surroundings(mesh, kms) as around, join(around.settings, "router", {}) as member:
        evidence = member.identity.current.evidence
        assert evidence.gpu_evidence is not None
        assert evidence.claims == {"role": "router", "gpu_evidence_sha256": evidence.gpu_evidence.digest.hex()}
        (gpu,) = mesh.machine.gpus.devices
        context = AppraisalContext(
            int(time.time()), evidence.spki, OwnNonce(evidence.challenge.nonce), member.policy.current.version
        )
        verdict = appraise(evidence, member.policy.current.rules("router"), context).gpu
        assert verdict is not None
        assert [device.ueid for device in verdict.devices] == [gpu.ueid]
        assert verdict.reports_verified
        member.policy.accept_revocations([mesh.revocation(RevocationKind.DEVICE, gpu.ueid)])
        with pytest.raises(MeshError) as error:
            appraise(evidence, member.policy.current.rules("router"), context)
        assert error.value.reason == "GPU_DEVICE_REVOKED"


async def test_without_a_token_service_a_role_that_needs_a_gpu_does_not_join(mesh: JoinedMesh) -> None:
    mesh.require_gpu("router")
    async with surroundings(mesh, mesh.kms(), gpu_tokens=False) as around:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1), join(around.settings, "router", {}):
                pass


class Certifier:
    """An authority that answers with whatever certificate the test has prepared for a request."""

    def __init__(self, kms: KmsCore) -> None:
        self.kms = kms
        self.instance: str | None = None
        self.other: KmsCore | None = None
        self.earlier: Issued | None = None

    async def issue(self, request: object, policy: object) -> Issued:
        kms = self.other or self.kms
        document = await request.prove(kms.challenges.issue(ISSUANCE))  # type: ignore[attr-defined]
        if self.earlier is not None:
            return self.earlier
        instance = self.instance or request.instance  # type: ignore[attr-defined]
        der, _ = kms.issuance.certify_service(request.csr, document, instance)  # type: ignore[attr-defined]
        return Issued(der, kms.ca.certificate)


@pytest.fixture
async def identity(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[tuple[Identity, Certifier]]:
    certifier = Certifier(kms)
    async with mesh.guest(mesh.tds["router"]) as socket, Guest(socket) as guest:
        prover = Prover(guest, mesh.collateral, {"role": "router"})
        yield Identity(prover, certifier, mesh.keeper("k"), "router", "1"), certifier


async def refusal(identity: Identity) -> str:
    with pytest.raises(MeshError) as error:
        await identity.obtain()
    return error.value.reason


async def test_a_certificate_over_other_evidence_or_for_another_name_is_not_taken(
    identity: tuple[Identity, Certifier], kms: KmsCore
) -> None:
    mine, certifier = identity
    certifier.instance = "2"
    assert await refusal(mine) == "CERTIFICATE_NOT_ACCEPTED"
    certifier.instance = None
    await mine.obtain()
    certifier.earlier = Issued(mine.current.certificate.der, kms.ca.certificate)
    assert await refusal(mine) == "CERTIFICATE_NOT_ACCEPTED"


async def test_a_kms_that_speaks_for_another_ca_than_before_is_refused(
    identity: tuple[Identity, Certifier], mesh: JoinedMesh
) -> None:
    mine, certifier = identity
    await mine.obtain()
    held = mine.current
    certifier.other = mesh.kms("other", root=bytes(32))
    assert await refusal(mine) == "CA_CHANGED"
    assert mine.current is held


def test_a_challenge_for_another_purpose_is_refused_and_spent(kms: KmsCore) -> None:
    challenges = Challenges("kms/1", lambda: (kms.ca.key, kms.ca.certificate))
    nonce = challenges.issue("x").nonce
    for purpose in ("y", "x"):
        with pytest.raises(MeshError) as error:
            challenges.spend(nonce, purpose)
        assert error.value.reason == "CHALLENGE_NOT_OPEN"


def test_too_many_open_challenges_forget_the_oldest(kms: KmsCore) -> None:
    challenges = Challenges("kms/1", lambda: (kms.ca.key, kms.ca.certificate))
    first = challenges.issue("x")
    for _ in range(10_000):
        last = challenges.issue("x")
    with pytest.raises(MeshError) as error:
        challenges.spend(first.nonce, "x")
    assert error.value.reason == "CHALLENGE_NOT_OPEN"
    challenges.spend(last.nonce, "x")
