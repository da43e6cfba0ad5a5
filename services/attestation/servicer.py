"""Wire to domain; decides nothing."""

from __future__ import annotations

from teemesh.attestation.v1 import attestation_pb2 as pb
from teemesh.attestation.v1 import attestation_pb2_grpc as pb_grpc
from teemesh.attestation.v1 import collateral_pb2, collateral_pb2_grpc

from libs import jcs
from libs.identity.challenges import Challenges
from libs.rpc.calls import Context
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from services.attestation.appraisal import Appraiser
from services.attestation.collateral import CollateralCache

_MEMBERS = frozenset({"kms", "registry", "router", "node", "ledger", "broker", "operator", "auditor"})


class CollateralServicer(collateral_pb2_grpc.CollateralServiceServicer):
    """The bootstrap listener; see `collateral.proto`."""

    def __init__(self, cache: CollateralCache) -> None:
        self._cache = cache

    async def GetCollateral(  # noqa: N802
        self,
        request: collateral_pb2.GetCollateralRequest,
        context: Context,
    ) -> collateral_pb2.GetCollateralResponse:
        held = await self._cache.held(request.quote)
        return collateral_pb2.GetCollateralResponse(
            collateral=held.collateral.encode(), valid_until_ms=int(held.valid_until * 1000)
        )


class AttestationServicer(pb_grpc.AttestationServiceServicer):
    """The mesh listener; see `attestation.proto`."""

    def __init__(self, challenges: Challenges, appraiser: Appraiser) -> None:
        self._challenges = challenges
        self._appraiser = appraiser

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
        appraisal = self._appraiser.appraise(request.document, request.role)
        return pb.AppraiseResponse(appraisal=jcs.dumps(appraisal.to_json()))


def collateral_binding(servicer: CollateralServicer) -> ServiceBinding:
    """The only service of the bootstrap listener; it asks nobody for a certificate."""
    name = "teemesh.attestation.v1.CollateralService"
    return ServiceBinding(
        name=name,
        add=lambda server: collateral_pb2_grpc.add_CollateralServiceServicer_to_server(servicer, server),
        methods={f"/{name}/GetCollateral": MethodRule(roles=ANY_ROLE, lease=False)},
    )


def attestation_binding(servicer: AttestationServicer) -> ServiceBinding:
    name = "teemesh.attestation.v1.AttestationService"
    rule = MethodRule(roles=_MEMBERS)
    return ServiceBinding(
        name=name,
        add=lambda server: pb_grpc.add_AttestationServiceServicer_to_server(servicer, server),
        methods={f"/{name}/CreateChallenge": rule, f"/{name}/Appraise": rule},
    )
