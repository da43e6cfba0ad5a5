"""Wire to domain; decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from teemesh.attestation.v1 import attestation_pb2 as pb
from teemesh.attestation.v1 import attestation_pb2_grpc as pb_grpc
from teemesh.attestation.v1 import collateral_pb2, collateral_pb2_grpc

from libs import jcs
from libs.errors import Code, MeshError
from libs.identity.challenges import Challenges
from libs.policy.vocabulary import EVIDENCE_ROLES, PEOPLE_ROLES
from libs.rpc.calls import Context
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from libs.tee.nvidia.evidence import RawReport
from services.attestation.appraisal import Appraiser
from services.attestation.archive import Archive
from services.attestation.collateral import CollateralCache
from services.attestation.feed import Feed, Made
from services.attestation.gpu_tokens import SWITCHES, GpuTokens, SignedTokens
from services.attestation.leases import LiveLeases
from services.attestation.sweep import Sweep

_MEMBERS = (EVIDENCE_ROLES - {"attestation"}) | PEOPLE_ROLES
_MAX_UNCOVERED = 10_000
"""So many leases are named in a reply: at most 256 bytes of name and 63 of reason each, they fit `MESSAGE_BYTES`."""

_OBSERVERS = frozenset({"kms", "registry", "router", "ledger", "operator", "auditor"})


class RegistryNotConfigured(MeshError):
    """This service was given no registry, so it knows of no leases."""

    code = Code.FAILED_PRECONDITION
    reason = "REGISTRY_NOT_CONFIGURED"


class CollateralServicer(collateral_pb2_grpc.CollateralServiceServicer):
    """Both listeners; see `collateral.proto`."""

    def __init__(self, cache: CollateralCache, gpu_tokens: GpuTokens) -> None:
        self._cache = cache
        self._gpu_tokens = gpu_tokens

    async def GetCollateral(  # noqa: N802
        self,
        request: collateral_pb2.GetCollateralRequest,
        context: Context,
    ) -> collateral_pb2.GetCollateralResponse:
        held = await self._cache.held(request.quote)
        return collateral_pb2.GetCollateralResponse(
            collateral=held.collateral.encode(), valid_until_ms=int(held.valid_until * 1000)
        )

    async def GetGpuTokens(  # noqa: N802
        self,
        request: collateral_pb2.GetGpuTokensRequest,
        context: Context,
    ) -> collateral_pb2.GetGpuTokensResponse:
        signed = await self._gpu_tokens.tokens(request.nonce, request.architecture, _reports(request))
        return collateral_pb2.GetGpuTokensResponse(tokens=jcs.dumps(signed.eat.to_json()), keys=_key_chains(signed))

    async def GetSwitchTokens(  # noqa: N802
        self,
        request: collateral_pb2.GetSwitchTokensRequest,
        context: Context,
    ) -> collateral_pb2.GetSwitchTokensResponse:
        signed = await self._gpu_tokens.tokens(request.nonce, request.architecture, _reports(request), SWITCHES)
        return collateral_pb2.GetSwitchTokensResponse(tokens=jcs.dumps(signed.eat.to_json()), keys=_key_chains(signed))


@dataclass(frozen=True, slots=True)
class Watching:
    """The registry's leases and the last verdict about each."""

    leases: LiveLeases
    sweep: Sweep


class AttestationServicer(pb_grpc.AttestationServiceServicer):
    """The mesh listener; see `attestation.proto`."""

    def __init__(
        self, challenges: Challenges, appraiser: Appraiser, archive: Archive, feed: Feed, watching: Watching | None
    ) -> None:
        self._challenges = challenges
        self._appraiser = appraiser
        self._archive = archive
        self._feed = feed
        self._watching = watching

    async def CreateChallenge(  # noqa: N802
        self,
        request: pb.CreateChallengeRequest,
        context: Context,
    ) -> pb.CreateChallengeResponse:
        return pb.CreateChallengeResponse(challenge=self._challenges.issue(request.purpose).encode())

    async def Appraise(  # noqa: N802
        self,
        request: pb.AppraiseRequest,
        context: Context,
    ) -> pb.AppraiseResponse:
        answer = await self._appraiser.appraise(request.document, request.role)
        return pb.AppraiseResponse(appraisal=answer.appraisal, result=answer.result, record_digest=answer.record_digest)

    async def GetEvidence(  # noqa: N802
        self,
        request: pb.GetEvidenceRequest,
        context: Context,
    ) -> pb.GetEvidenceResponse:
        return pb.GetEvidenceResponse(document=await self._archive.evidence(request.digest))

    async def GetAppraisal(  # noqa: N802
        self,
        request: pb.GetAppraisalRequest,
        context: Context,
    ) -> pb.GetAppraisalResponse:
        return pb.GetAppraisalResponse(bundle=await self._archive.bundle(request.record_digest))

    async def WatchAppraisals(  # noqa: N802
        self, request: pb.WatchAppraisalsRequest, context: Context
    ) -> AsyncIterator[pb.WatchAppraisalsResponse]:
        async with aclosing(self._feed.follow(request.after_sequence)) as events:
            async for told in events:
                if told.made is None:
                    yield pb.WatchAppraisalsResponse(heartbeat=pb.AppraisalHeartbeat(), sequence=told.sequence)
                else:
                    yield pb.WatchAppraisalsResponse(made=_wire(told.made), sequence=told.sequence)

    async def GetCoverage(  # noqa: N802
        self,
        request: pb.GetCoverageRequest,
        context: Context,
    ) -> pb.GetCoverageResponse:
        if self._watching is None:
            raise RegistryNotConfigured("configure a registry to have its nodes appraised")
        leases, coverage = self._watching.leases, self._watching.sweep.coverage(request.max_age_seconds)
        return pb.GetCoverageResponse(
            live_leases=coverage.live_leases,
            covered=coverage.covered,
            share=coverage.share,
            uncovered=[
                pb.Uncovered(
                    spiffe_id=each.spiffe_id, reason=each.reason, evidence_age_seconds=each.evidence_age_seconds
                )
                for each in coverage.uncovered[:_MAX_UNCOVERED]
            ],
            registry_watched=leases.watched,
            registry_heard_at_ms=int(leases.heard_at * 1000),
            policy_version=coverage.policy_version,
        )


def collateral_binding(servicer: CollateralServicer) -> ServiceBinding:
    """The only service of the bootstrap listener; it asks nobody for a certificate."""
    return _collateral(servicer, MethodRule(roles=ANY_ROLE, lease=False))


def mesh_collateral_binding(servicer: CollateralServicer) -> ServiceBinding:
    """The same on the mesh listener, without the bootstrap listener's rate limit."""
    return _collateral(servicer, MethodRule(roles=_MEMBERS))


def attestation_binding(servicer: AttestationServicer) -> ServiceBinding:
    name = "teemesh.attestation.v1.AttestationService"
    member, observer = MethodRule(roles=_MEMBERS), MethodRule(roles=_OBSERVERS)
    return ServiceBinding(
        name=name,
        add=lambda server: pb_grpc.add_AttestationServiceServicer_to_server(servicer, server),
        methods={
            f"/{name}/CreateChallenge": member,
            f"/{name}/Appraise": member,
            f"/{name}/GetEvidence": member,
            f"/{name}/GetAppraisal": member,
            f"/{name}/WatchAppraisals": MethodRule(roles=_OBSERVERS, long_lived=True),
            f"/{name}/GetCoverage": observer,
        },
    )


def _collateral(servicer: CollateralServicer, rule: MethodRule) -> ServiceBinding:
    name = "teemesh.attestation.v1.CollateralService"
    return ServiceBinding(
        name=name,
        add=lambda server: collateral_pb2_grpc.add_CollateralServiceServicer_to_server(servicer, server),
        methods={f"/{name}/{method}": rule for method in ("GetCollateral", "GetGpuTokens", "GetSwitchTokens")},
    )


def _reports(request: collateral_pb2.GetGpuTokensRequest | collateral_pb2.GetSwitchTokensRequest) -> list[RawReport]:
    return [RawReport(each.report, each.certificate_chain) for each in request.reports]


def _key_chains(signed: SignedTokens) -> list[collateral_pb2.KeyChain]:
    return [collateral_pb2.KeyChain(key_id=key_id, certificates=chain) for key_id, chain in signed.keys.items()]


def _wire(made: Made) -> pb.AppraisalMade:
    return pb.AppraisalMade(
        record_digest=made.record_digest,
        evidence_digest=made.evidence_digest,
        role=made.role,
        spiffe_id=made.spiffe_id,
        policy_version=made.policy_version,
        appraised_at_ms=made.appraised_at * 1000,
        refusal=made.refusal or "",
    )
