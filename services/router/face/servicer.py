"""Wire to domain for gRPC clients: the same exchanges as over HTTPS, an API key in the metadata; decides nothing."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from google.protobuf import duration_pb2
from teemesh.inference.v1 import inference_pb2 as pb
from teemesh.inference.v1 import inference_pb2_grpc as pb_grpc
from teemesh.ledger.v1 import acknowledgement_pb2

from libs.aci.endpoints import SERVED, Endpoint, paths
from libs.aci.keyset import KEYSET_HEADER
from libs.aci.sse import Protocol
from libs.errors import Code
from libs.rpc.calls import Context
from libs.rpc.deadline import remaining_seconds
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding
from services.router.admission.limits import Gates
from services.router.admission.tenants import Tenant
from services.router.e2ee.opening import HEADERS
from services.router.errors import (
    BodiesBusy,
    EndpointNotSupported,
    InvalidRequest,
    LedgerUnavailable,
    NotFound,
    RequestTooLarge,
    RouterError,
)
from services.router.exchange.course import Request, Started
from services.router.exchange.ends import End
from services.router.exchange.running import Exchanges
from services.router.face.bodies import BodyRoom, Share
from services.router.face.door import INFER, LIST_MODELS, admitted, metadata
from services.router.face.prompts import REQUEST_ID
from services.router.face.settings import DELIVERY_SECONDS
from services.router.proof.kept_receipts import KeptReceipts
from services.router.routing.models import Models

_CLIENTS_CLOCK_SECONDS = 0.1
"""A client's time is over a little before this side knows: who leaves in these last moments has run out of it."""

ENVELOPE_BYTES = 64 << 10
"""How much more than the largest body a message may have: its other fields, and what makes a body too large. Of a
larger message nothing is read, so nobody knows whose it is.
"""

_NOWHERE = Endpoint("none", Protocol.CHAT, streams=False, e2ee=False)
"""Stands in receipts where a request names no endpoint that there is: what it names may be anything, of any length."""

_SERVICE = "teemesh.inference.v1.InferenceService"


class RequestIdMalformed(RouterError):
    """Not a request id."""

    status = 400
    type = "invalid_request_error"
    code = Code.INVALID_ARGUMENT
    reason = "REQUEST_ID_MALFORMED"


class RouterServicer(pb_grpc.InferenceServiceServicer):
    """See `inference.proto`. A response's own error status travels in its head, not as a failed call."""

    def __init__(
        self,
        gates: Gates,
        exchanges: Exchanges,
        models: Models,
        receipts: KeptReceipts,
        room: BodyRoom,
        max_body_bytes: int,
        request_seconds: float,
        delivery_seconds: float = DELIVERY_SECONDS,
    ) -> None:
        self._gates = gates
        self._exchanges = exchanges
        self._models = models
        self._receipts = receipts
        self._room = room
        self._max_body_bytes = max_body_bytes
        self._request_seconds = request_seconds
        self._delivery_seconds = delivery_seconds
        self._stopping = False

    def stop(self) -> None:
        """MUST be called before the server ends: gRPC does not say who cancelled a call, its client or the server."""
        self._stopping = True

    async def Infer(  # noqa: N802
        self, request: pb.InferRequest, context: Context
    ) -> AsyncIterator[pb.InferResponse]:
        tenant, endpoint = admitted(), SERVED.get(request.endpoint, _NOWHERE)
        with self._gates.entered(tenant) as limited, self._room.share() as share:
            share.assign(tenant.tenant_id)
            unread = limited or self._unread(request, context, share)
            async with aclosing(self._exchange(request, endpoint, tenant, unread, context)) as parts:
                async for part in parts:
                    yield part

    def _unread(self, request: pb.InferRequest, context: Context, share: Share) -> RouterError | None:
        """Return why nothing of it is judged: whoever has a key gets a receipt for that, too."""
        if request.endpoint not in SERVED:
            return EndpointNotSupported(f"endpoints are {', '.join(SERVED)}")
        if any(metadata(context).all(name) for name in HEADERS):
            # E2EE v2 is a protocol over HTTP. Whoever asks for it here must not be answered without.
            return InvalidRequest("end-to-end encryption is not served over gRPC")
        if REQUEST_ID.fullmatch(request.request_id) is None:
            return RequestIdMalformed("a request id is 1 to 64 letters, digits, hyphens and underscores")
        if len(request.body) > self._max_body_bytes:
            return RequestTooLarge(f"the request body is over {self._max_body_bytes} bytes")
        try:
            share.take(len(request.body))
        except BodiesBusy as busy:
            return busy
        return None

    async def _exchange(
        self,
        request: pb.InferRequest,
        endpoint: Endpoint,
        tenant: Tenant,
        unread: RouterError | None,
        context: Context,
    ) -> AsyncGenerator[pb.InferResponse, None]:
        seconds = min(self._request_seconds, remaining_seconds() or self._request_seconds)
        receipt_id, asked_id = "", request.request_id
        # A client that does not read must not hold its receipt, nor its place, for as long as it likes.
        async with asyncio.timeout(seconds + self._delivery_seconds) as patience:

            def why() -> End:
                if patience.expired():
                    return End.CLIENT_TOO_SLOW
                if (remaining_seconds() or 0.0) < _CLIENTS_CLOCK_SECONDS:
                    return End.DEADLINE_EXCEEDED
                return End.SHUTDOWN if self._stopping else End.CLIENT_DISCONNECTED

            asked = Request(
                endpoint=endpoint,
                body=request.body,
                tenant=tenant,
                request_id=asked_id if REQUEST_ID.fullmatch(asked_id) else f"req_{secrets.token_hex(16)}",
                deadline=asyncio.get_running_loop().time() + seconds,
                why=why,
                unread=unread,
                keyset_digest=_named_keyset(context),
            )
            async with aclosing(self._exchanges.run(asked)) as exchange:
                async for part in exchange:
                    if isinstance(part, Started):
                        receipt_id = part.receipt_id
                        yield pb.InferResponse(
                            head=pb.Head(
                                status=part.status,
                                content_type=part.content_type,
                                receipt_id=part.receipt_id,
                                workload_keyset_digest=part.keyset_digest,
                                retry_delay=_delay(part),
                            )
                        )
                    elif part:
                        yield pb.InferResponse(chunk=part)
            yield pb.InferResponse(conclusion=await self._conclusion(receipt_id, tenant.tenant_id))

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(
            models=[
                pb.ServedModel(id=model.name, weights_sha256=model.weights_sha256, endpoints=paths(model.endpoints))
                for model in self._models.of(admitted())
            ]
        )

    async def _conclusion(self, receipt_id: str, tenant_id: str) -> pb.Conclusion:
        """Raises `LedgerUnavailable` when there is no receipt to show: the answer that says so has gone out before."""
        try:
            stored = await self._receipts.find(receipt_id, tenant_id)
        except NotFound as error:
            raise LedgerUnavailable("the ledger did not acknowledge this response's receipt") from error
        acknowledgement = acknowledgement_pb2.Acknowledgement.FromString(stored.acknowledgement or b"")
        return pb.Conclusion(receipt=stored.receipt, acknowledgement=acknowledgement)


def router_binding(servicer: RouterServicer) -> ServiceBinding:
    """For the client listener: no client certificate, but an API key in every call, which `door` asks for."""
    anyone = MethodRule(roles=ANY_ROLE, lease=False)
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: pb_grpc.add_InferenceServiceServicer_to_server(servicer, server),
        methods={INFER: anyone, LIST_MODELS: anyone},
    )


def _delay(started: Started) -> duration_pb2.Duration | None:
    seconds = started.retry_seconds
    return None if seconds is None else duration_pb2.Duration(seconds=seconds)


def _named_keyset(context: Context) -> str | None:
    """Return the keyset that the client says it verified: a hint, as over HTTPS."""
    return metadata(context).first(KEYSET_HEADER.lower())
