"""Between the wire and `generation`: messages in, messages out; it decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing

import grpc
from teemesh.inference.v1 import inference_pb2, inference_pb2_grpc

from libs.rpc.deadline import outgoing_timeout
from libs.rpc.policies import MethodRule, ServiceBinding
from services.node.generation import Conclusion, Generation, Head, Part, Request
from services.node.registration import ServedModel

_SERVICE = "teemesh.inference.v1.InferenceService"

METHODS = {
    f"/{_SERVICE}/Infer": MethodRule(roles=frozenset({"router"})),
    f"/{_SERVICE}/ListModels": MethodRule(roles=frozenset({"router", "operator"})),
}


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, generation: Generation, models: Sequence[ServedModel], request_seconds: float) -> None:
        self._generation = generation
        self._models = models
        self._request_seconds = request_seconds

    async def Infer(  # noqa: N802 - the name is gRPC's
        self,
        request: inference_pb2.InferRequest,
        context: grpc.aio.ServicerContext[inference_pb2.InferRequest, AsyncIterator[inference_pb2.InferResponse]],
    ) -> AsyncIterator[inference_pb2.InferResponse]:
        asked = Request(
            endpoint=request.endpoint,
            body=request.body,
            request_id=request.request_id,
            tenant_id=request.tenant_id,
        )
        parts = self._generation.generate(asked, outgoing_timeout(self._request_seconds))
        # Closed when the call is cancelled, so that the engine stops at once and not at garbage collection.
        async with aclosing(parts):
            async for part in parts:
                yield _message(part)

    async def ListModels(  # noqa: N802 - the name is gRPC's
        self,
        request: inference_pb2.ListModelsRequest,
        context: grpc.aio.ServicerContext[inference_pb2.ListModelsRequest, Awaitable[inference_pb2.ListModelsResponse]],
    ) -> inference_pb2.ListModelsResponse:
        models = sorted(self._models, key=lambda model: model.model_id)
        return inference_pb2.ListModelsResponse(
            models=[
                inference_pb2.ServedModel(
                    id=model.model_id, weights_sha256=model.weights_sha256, endpoints=self._generation.endpoints
                )
                for model in models
            ]
        )


def binding(servicer: InferenceServicer) -> ServiceBinding:
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server),
        methods=METHODS,
    )


def _message(part: Part) -> inference_pb2.InferResponse:
    match part:
        case Head():
            head = inference_pb2.Head(status=part.status, content_type=part.content_type)
            return inference_pb2.InferResponse(head=head)
        case Conclusion():
            return inference_pb2.InferResponse(conclusion=inference_pb2.Conclusion(receipt=part.receipt))
        case bytes():
            return inference_pb2.InferResponse(chunk=part)
