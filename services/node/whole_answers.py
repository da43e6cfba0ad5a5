"""Between the wire and `generation`, for answers that are not streamed: each in one message."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import aclosing

import grpc
from teemesh.inference.v1 import inference_pb2, whole_answer_pb2, whole_answer_pb2_grpc

from libs.aci.whole_answers import MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES, TOO_LARGE
from libs.errors import Code, MeshError
from libs.rpc.deadline import outgoing_timeout
from libs.rpc.policies import MethodRule, ServiceBinding
from services.node.generation import Conclusion, Generation, Head, Request

_SERVICE = "teemesh.inference.v1.WholeAnswerService"

METHODS = {f"/{_SERVICE}/InferWhole": MethodRule(roles=frozenset({"router"}))}


class AnswerTooLarge(MeshError):
    """The engine's answer is longer than one that is not streamed may be."""

    code = Code.RESOURCE_EXHAUSTED
    reason = TOO_LARGE


class WholeAnswerServicer(whole_answer_pb2_grpc.WholeAnswerServiceServicer):
    def __init__(self, generation: Generation, request_seconds: float) -> None:
        self._generation = generation
        self._request_seconds = request_seconds

    async def InferWhole(  # noqa: N802 - the name is gRPC's
        self,
        request: whole_answer_pb2.InferWholeRequest,
        context: grpc.aio.ServicerContext[
            whole_answer_pb2.InferWholeRequest, Awaitable[whole_answer_pb2.InferWholeResponse]
        ],
    ) -> whole_answer_pb2.InferWholeResponse:
        asked = Request(
            endpoint=request.request.endpoint,
            body=request.request.body,
            request_id=request.request.request_id,
            tenant_id=request.request.tenant_id,
        )
        answer, body = whole_answer_pb2.InferWholeResponse(), bytearray()
        # Closed when the call is cancelled, so that the engine stops at once and not at garbage collection.
        async with aclosing(self._generation.generate(asked, outgoing_timeout(self._request_seconds))) as parts:
            async for part in parts:
                match part:
                    case Head():
                        answer.head.MergeFrom(inference_pb2.Head(status=part.status, content_type=part.content_type))
                    case Conclusion():
                        answer.conclusion.receipt = part.receipt
                    case bytes():
                        body += part
                        if len(body) > MAX_ANSWER_BYTES:
                            raise AnswerTooLarge(f"the answer is longer than the {MAX_ANSWER_BYTES} bytes it may have")
        answer.body = bytes(body)
        return answer


def binding(servicer: WholeAnswerServicer) -> ServiceBinding:
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: whole_answer_pb2_grpc.add_WholeAnswerServiceServicer_to_server(servicer, server),
        methods=METHODS,
        answer_bytes=MAX_MESSAGE_BYTES,
    )
