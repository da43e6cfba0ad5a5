"""Wire to domain for ACI's documents over gRPC: the same as over HTTPS, made of the same arrivals; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable

from teemesh.inference.v1 import aci_pb2 as pb
from teemesh.inference.v1 import aci_pb2_grpc as pb_grpc

from libs.aci.report import NonceMalformed
from libs.rpc.calls import Context
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from services.router.errors import InvalidRequest
from services.router.face.answers import Reply
from services.router.face.arrivals import Arrival, Fields
from services.router.face.documents import Documents
from services.router.face.door import metadata

_SERVICE = "teemesh.inference.v1.AciService"
_METHODS = ("GetAttestation", "GetReceipt", "GetCommitment", "GetUsage", "ListSessions", "GetSession", "GetEvidence")


class AciServicer(pb_grpc.AciServiceServicer):
    """See `aci.proto`."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def GetAttestation(  # noqa: N802
        self, request: pb.GetAttestationRequest, context: Context
    ) -> pb.GetAttestationResponse:
        asked = [("nonce", request.nonce)] if request.HasField("nonce") else []
        try:
            reply = await self._documents.attestation(_arrival(context, asked), "")
        except NonceMalformed as error:
            raise InvalidRequest(str(error)) from error
        return pb.GetAttestationResponse(report=_whole(reply))

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Context) -> pb.GetReceiptResponse:  # noqa: N802
        return pb.GetReceiptResponse(receipt=_whole(await self._documents.receipt(_arrival(context), request.id)))

    async def GetCommitment(  # noqa: N802
        self, request: pb.GetCommitmentRequest, context: Context
    ) -> pb.GetCommitmentResponse:
        reply = await self._documents.commitment(_arrival(context), request.id)
        return pb.GetCommitmentResponse(commitment=_whole(reply))

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:  # noqa: N802
        asked = [("before", str(request.before))] if request.HasField("before") else []
        return pb.GetUsageResponse(usage=_whole(await self._documents.used(_arrival(context, asked), "")))

    async def ListSessions(  # noqa: N802
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        names = (name for name in ("upstream_name", "model") if request.HasField(name))
        asked = [(name, str(getattr(request, name))) for name in names]
        return pb.ListSessionsResponse(sessions=_whole(await self._documents.sessions(_arrival(context, asked), "")))

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse:  # noqa: N802
        reply = await self._documents.session(_arrival(context), request.session_id)
        return pb.GetSessionResponse(session=_whole(reply))

    async def GetEvidence(  # noqa: N802
        self, request: pb.GetEvidenceRequest, context: Context
    ) -> pb.GetEvidenceResponse:
        reply = await self._documents.evidence_document(_arrival(context), request.digest)
        return pb.GetEvidenceResponse(evidence=_whole(reply))


def aci_binding(servicer: AciServicer) -> ServiceBinding:
    """For the client listener: no client certificate, and an API key in the calls that need one."""
    anyone = MethodRule(roles=ANY_ROLE, lease=False)
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: pb_grpc.add_AciServiceServicer_to_server(servicer, server),
        methods={f"/{_SERVICE}/{method}": anyone for method in _METHODS},
    )


def _arrival(context: Context, query: Iterable[tuple[str, str]] = ()) -> Arrival:
    return Arrival("GET", "", Fields(query), metadata(context), _no_body, context.cancelled, connection=context.peer())


async def _no_body(limit: int, tenant_id: str) -> bytes:
    return b""


def _whole(reply: Reply) -> bytes:
    """Documents are never sent in pieces."""
    if not isinstance(reply.body, bytes):
        raise TypeError("a document came as a stream")
    return reply.body
