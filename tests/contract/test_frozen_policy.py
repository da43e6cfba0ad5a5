"""A policy that is frozen: whoever hides newer ones or falls silent ends each service's work within five minutes.

The clock by which a service measures silence is the test's; gRPC, TLS, leases and each service's own table of methods
are real. The KMS is not among them, being who states; NATS, which the broker closes then, is in `test_broker_leases`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import grpc.aio
import pytest
from teemesh.attestation.v1 import attestation_pb2, attestation_pb2_grpc
from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc
from teemesh.inference.v1 import inference_pb2, inference_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.errors import MeshError
from libs.identity.challenges import Challenges
from libs.identity.exchange import evidence_binding
from libs.identity.freshness import MAX_SILENCE_SECONDS, PolicyKeeper, PolicyStale
from libs.policy.statement import Statement
from libs.rpc.errors import remote_errors
from libs.rpc.policies import ServiceBinding
from services.attestation.servicer import AttestationServicer, attestation_binding, mesh_collateral_binding
from services.kms.replication import replication_binding
from services.kms.servicer import kms_binding
from services.ledger.serving.servicer import LedgerServicer, ledger_binding
from services.node.servicer import InferenceServicer
from services.node.servicer import binding as node_binding
from services.registry.servicer import RegistryServicer, registry_binding, tenants_binding
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, KmsCore, hear
from tests.fakes.lying_list import lying_list

_CALL_SECONDS = 10.0
NOTHING = cast(Any, None)
"""A part that the work asked for here does not need."""

Ask = Callable[[grpc.aio.Channel], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Service:
    """A service, and some work that it does for a caller of another role."""

    bind: Callable[[KmsCore, PolicyKeeper], ServiceBinding]
    caller: str
    ask: Ask
    does: str | None = None
    """The reason with which it answers, if even a ready one would need more than is here."""


def _attestation(kms: KmsCore, policy: PolicyKeeper) -> ServiceBinding:
    challenges = Challenges(f"spiffe://{TRUST_DOMAIN}/attestation/1", lambda: (kms.ca.key, kms.ca.certificate))
    return attestation_binding(AttestationServicer(challenges, NOTHING, NOTHING, NOTHING, None))


def _registry(kms: KmsCore, policy: PolicyKeeper) -> ServiceBinding:
    return registry_binding(RegistryServicer(NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, policy))


SERVICES: Mapping[str, Service] = {
    "attestation": Service(
        _attestation,
        "router",
        lambda channel: attestation_pb2_grpc.AttestationServiceStub(channel).CreateChallenge(
            attestation_pb2.CreateChallengeRequest(purpose="appraisal"), timeout=_CALL_SECONDS
        ),
    ),
    "ledger": Service(
        lambda kms, policy: ledger_binding(LedgerServicer()),
        "router",
        lambda channel: ledger_pb2_grpc.LedgerServiceStub(channel).GetCheckpoint(
            ledger_pb2.GetCheckpointRequest(), timeout=_CALL_SECONDS
        ),
        does="LEDGER_NOT_READY",
    ),
    "node": Service(
        lambda kms, policy: node_binding(InferenceServicer(NOTHING, [], 1.0)),
        "router",
        lambda channel: inference_pb2_grpc.InferenceServiceStub(channel).ListModels(
            inference_pb2.ListModelsRequest(), timeout=_CALL_SECONDS
        ),
    ),
    "registry": Service(
        _registry,
        "node",
        lambda channel: registry_pb2_grpc.ProviderRegistryServiceStub(channel).GetPolicy(
            registry_pb2.GetPolicyRequest(), timeout=_CALL_SECONDS
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Working:
    """A service at work."""

    policy: PolicyKeeper
    clock: Clock
    channel: grpc.aio.Channel
    shown: bytes
    """SHA-256 of the key that it shows on the channel."""
    ask: Callable[[], Awaitable[object]]

    async def answers(self) -> str | None:
        """The reason with which work is refused, None if it is done."""
        try:
            with remote_errors():
                await self.ask()
        except MeshError as refusal:
            return refusal.reason
        return None


@asynccontextmanager
async def working(mesh: JoinedMesh, kms: KmsCore, role: str) -> AsyncIterator[Working]:
    service, clock = SERVICES[role], Clock()
    policy = mesh.keeper(f"frozen-{role}", clock=clock)
    async with (
        mesh.member(role, kms, keeper=policy, claims={"models": []}) as member,
        member.serve([service.bind(kms, policy)]) as running,
        mesh.member(service.caller, kms, instance="caller", claims={"models": []}) as caller,
    ):
        channel = await caller.peer(role, f"127.0.0.1:{running.port}").channel(_CALL_SECONDS)
        shown = member.identity.current.certificate.spki_sha256
        yield Working(policy, clock, channel, shown, lambda: service.ask(channel))


@pytest.mark.parametrize("role", SERVICES)
async def test_a_service_works_for_five_minutes_after_the_last_statement_and_no_longer(
    mesh: JoinedMesh, kms: KmsCore, role: str
) -> None:
    async with working(mesh, kms, role) as service:
        assert await service.answers() == SERVICES[role].does
        service.clock.now += MAX_SILENCE_SECONDS - 1
        assert await service.answers() == SERVICES[role].does
        service.clock.now += 2
        assert await service.answers() == "POLICY_STALE"
        hear(service.policy, service.clock.now)
        assert await service.answers() == SERVICES[role].does


@pytest.mark.parametrize("role", SERVICES)
async def test_a_stream_that_a_service_let_in_ends_five_minutes_after_the_last_statement(
    mesh: JoinedMesh, kms: KmsCore, role: str
) -> None:
    """What comes over it would be work too, acknowledgements of a ledger for example."""
    async with working(mesh, kms, role) as service, asyncio.timeout(3 * _CALL_SECONDS):
        stream = evidence_pb2_grpc.EvidenceServiceStub(service.channel).WatchRenewals(
            evidence_pb2.WatchRenewalsRequest(spki_sha256=service.shown)
        )
        await stream.read()
        service.clock.now += MAX_SILENCE_SECONDS + 1
        with pytest.raises(MeshError) as refused, remote_errors():
            await stream.read()
        assert refused.value.reason == "POLICY_STALE"


@pytest.mark.parametrize("role", SERVICES)
@pytest.mark.parametrize("frozen", ["older", "hidden", "replayed", "revocations hidden"])
async def test_statements_that_a_service_cannot_match_let_it_work_no_longer(
    mesh: JoinedMesh, kms: KmsCore, role: str, frozen: str
) -> None:
    """By a host that was rolled back, by one who hides a version or a revocation, by one who replays the last word."""
    async with working(mesh, kms, role) as service:
        policy, clock = service.policy, service.clock
        first = statement(policy, clock)
        if frozen == "older":
            policy.accept(mesh.successor(policy.current))
            hear(policy, clock.now)
        for _ in range(6):
            clock.now += MAX_SILENCE_SECONDS / 5
            told = {
                "older": replace(first, time_ms=int(clock.now * 1000)),
                "hidden": replace(statement(policy, clock), version=policy.current.version + 1, digest=b"\x01" * 32),
                "replayed": first,
                "revocations hidden": replace(statement(policy, clock), revocation=1, revocations_digest=b"\x01" * 32),
            }[frozen]
            try:
                policy.note(told)
            except MeshError as refusal:
                assert refusal.reason in ("POLICY_STALE", "REVOCATIONS_DIVERGED")  # noqa: PT017 - one does not raise
        assert await service.answers() == "POLICY_STALE"


def statement(policy: PolicyKeeper, clock: Clock) -> Statement:
    """What the KMS would say of what this service holds."""
    known = policy.revocations
    return Statement(policy.current.version, policy.current.digest, known.number, int(clock.now * 1000), known.digest)


async def test_a_router_under_a_frozen_policy_uses_no_node(mesh: JoinedMesh) -> None:
    clock = Clock()
    async with lying_list(mesh, clock) as line:
        node = await line.node()
        await line.say(await line.honestly(node))
        clock.now += MAX_SILENCE_SECONDS - 1
        assert line.choose().candidate.spiffe_id == node.spiffe_id
        clock.now += 2
        with pytest.raises(PolicyStale):
            line.choose()


def test_without_a_fresh_policy_nothing_is_answered_but_what_leads_to_one() -> None:
    """Who somebody is, and what operators put in force; all else in the tables of mesh listeners asks for a lease."""
    bindings = [
        attestation_binding(NOTHING),
        mesh_collateral_binding(NOTHING),
        evidence_binding(NOTHING),
        kms_binding(NOTHING),
        replication_binding(NOTHING),
        ledger_binding(NOTHING),
        node_binding(NOTHING),
        registry_binding(NOTHING),
        tenants_binding(NOTHING),
    ]
    rules = {name.rpartition("teemesh.")[2]: rule for binding in bindings for name, rule in binding.methods.items()}
    assert {name for name, rule in rules.items() if not rule.lease} == {
        "evidence.v1.EvidenceService/GetEvidence",
        "evidence.v1.EvidenceService/PresentEvidence",
        "kms.v1.KmsService/PublishPolicy",
        "kms.v1.KmsService/Revoke",
    }
