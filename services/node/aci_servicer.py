"""Wire to domain for ACI's documents of a direct service, which are its report and its receipts; decides nothing."""

from __future__ import annotations

from typing import NoReturn

from teemesh.inference.v1 import aci_pb2 as pb
from teemesh.inference.v1 import aci_pb2_grpc as pb_grpc

from libs.errors import Code, MeshError
from libs.rpc.calls import Context
from libs.rpc.policies import MethodRule, ServiceBinding
from services.node.kept_receipts import KeptReceipts
from services.node.reports import NodeReports

_SERVICE = "teemesh.inference.v1.AciService"
_METHODS = ("GetAttestation", "GetReceipt", "GetCommitment", "GetUsage", "ListSessions", "GetSession", "GetEvidence")


class NotServedByNodes(MeshError):
    """A direct service has no sessions (ACI section 8), and what a tenant logs and uses is known to routers."""

    code = Code.UNIMPLEMENTED
    reason = "NOT_SERVED_BY_NODES"


class AciServicer(pb_grpc.AciServiceServicer):
    """See `aci.proto`."""

    def __init__(self, reports: NodeReports, receipts: KeptReceipts) -> None:
        self._reports = reports
        self._receipts = receipts

    async def GetAttestation(  # noqa: N802
        self, request: pb.GetAttestationRequest, context: Context
    ) -> pb.GetAttestationResponse:
        nonce = request.nonce if request.HasField("nonce") else None
        return pb.GetAttestationResponse(report=await self._reports.report(nonce))

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Context) -> pb.GetReceiptResponse:  # noqa: N802
        return pb.GetReceiptResponse(receipt=self._receipts.find(request.id))

    async def GetCommitment(self, request: pb.GetCommitmentRequest, context: Context) -> NoReturn:  # noqa: N802
        _refuse()

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> NoReturn:  # noqa: N802
        _refuse()

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> NoReturn:  # noqa: N802
        _refuse()

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> NoReturn:  # noqa: N802
        _refuse()

    async def GetEvidence(self, request: pb.GetEvidenceRequest, context: Context) -> NoReturn:  # noqa: N802
        _refuse()


def aci_binding(servicer: AciServicer) -> ServiceBinding:
    """For the mesh listener: routers, and people with a certificate of the mesh."""
    asking = MethodRule(roles=frozenset({"router", "auditor", "operator"}))
    receipts = MethodRule(roles=frozenset({"router", "auditor"}))
    methods = {f"/{_SERVICE}/{method}": asking for method in _METHODS}
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: pb_grpc.add_AciServiceServicer_to_server(servicer, server),
        methods={**methods, f"/{_SERVICE}/GetReceipt": receipts},
    )


def _refuse() -> NoReturn:
    raise NotServedByNodes("a node serves its report and its receipts; ask a router for all else")
