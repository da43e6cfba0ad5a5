"""A node over gRPC as a router meets it: it answers what it is told, and says so in a receipt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, cast

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.inference.v1 import inference_pb2, inference_pb2_grpc, whole_answer_pb2, whole_answer_pb2_grpc
from teemesh.registry.v1 import registry_pb2

from libs.aci import endpoints, whole_answers
from libs.aci import receipt as receipts
from libs.aci.encoding import digest
from libs.aci.endpoints import Endpoint
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import Generated, RequestReceived, ResponseReturned
from libs.errors import Code, MeshError
from libs.rpc.errors import STATUS_DETAILS_KEY, status_of
from services.node.shares import TenantShares, TenantShareTaken
from services.registry.sessions import draft_session
from tests.fakes.leases import MODEL, WEIGHTS, node_lease

BUFFERED = (b'{"id":"chatcmpl-1","choi', b'ces":[{"finish_reason":"stop","message":{"content":"yes"}}]}')
STREAMED = (
    b'data: {"id":"chatcmpl-2","choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n',
    b'data: {"id":"chatcmpl-2","choices":[{"delta":{"content":"b"},"finish_reason":null}]}\n\n',
    b'data: {"id":"chatcmpl-2","choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
)


class AnswerTooLarge(MeshError):
    code = Code.RESOURCE_EXHAUSTED
    reason = whole_answers.TOO_LARGE


class NodeTwin(inference_pb2_grpc.InferenceServiceServicer, whole_answer_pb2_grpc.WholeAnswerServiceServicer):
    """One verified node. It answers what it is told, and may refuse, wait, break off or forge its receipt."""

    def __init__(
        self, instance: str, offered: Collection[Endpoint] = endpoints.DEFINED, *, gives_whole_answers: bool = False
    ) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.lease = node_lease(
            instance,
            more_claims={
                "receipt_key": self.key.public_key().public_bytes_raw().hex(),
                "engine_args_sha256": "00" * 32,
                "endpoints": endpoints.paths(offered),
                **({whole_answers.CLAIM: True} if gives_whole_answers else {}),
            },
        )
        self.status = 200
        self.content_type = "application/json"
        self.chunks: Sequence[bytes] = BUFFERED
        self.refuses = False
        self.refuses_as_too_large = False
        self.refuses_as_too_slow = False
        self.shares = TenantShares(0)
        """What each tenant may have here at once; 0: as much as comes."""
        self.breaks_at: int | None = None
        self.waits_at: int | None = None
        self.waits_before_head = False
        self.silent_seconds = 0.0
        """How long it gives nothing before it sends an empty chunk."""
        self.forges = False
        self.said: Mapping[str, Any] = {}
        """What its receipt says instead of what it would: body, endpoint, model, receipt_id."""
        self.generated: Generated | None = None
        """What its receipt says that its engine did."""
        self.meanwhile: Callable[[], None] | None = None
        """What happens once it has a prompt."""
        self.goes_on: asyncio.Event | None = None
        """Until when it holds back its answers, while it has so many."""
        self.running = 0
        self.most_running = 0
        self.requests: list[inference_pb2.InferRequest] = []
        self.asked_whole = 0
        """How many of them were to be answered in one message."""
        self.omits: Literal["head", "conclusion"] | None = None
        """What is missing in one message."""
        self.refuses_as_too_long = False
        self.waiting = asyncio.Event()
        self.go_on = asyncio.Event()
        """Set by a test: it waits no longer."""
        self.left = asyncio.Event()
        self.target = ""

    def stream(self, *chunks: bytes) -> None:
        self.content_type = "text/event-stream"
        self.chunks = chunks or STREAMED

    async def Infer(self, request: Any, context: Any) -> AsyncIterator[inference_pb2.InferResponse]:  # noqa: N802
        try:
            with self.shares.held(request.tenant_id):
                async with aclosing(self._infer(request, context)) as parts:
                    async for part in parts:
                        yield part
        except TenantShareTaken as error:
            details = ((STATUS_DETAILS_KEY, status_of(error).SerializeToString()),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), details)

    async def _infer(self, request: Any, context: Any) -> AsyncGenerator[inference_pb2.InferResponse, None]:
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.meanwhile is not None:
            self.meanwhile()
        try:
            if self.goes_on is not None:
                await self.goes_on.wait()
            if self.refuses:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
            if self.refuses_as_too_slow:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no time is left")
            if self.refuses_as_too_large:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")
            if self.waits_before_head:
                await self._wait()
            yield inference_pb2.InferResponse(
                head=inference_pb2.Head(status=self.status, content_type=self.content_type)
            )
            for number, chunk in enumerate([*self.chunks, None]):
                if self.breaks_at == number:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine is gone")
                if self.waits_at == number:
                    await self._wait()
                if chunk == b"":
                    await self._be_silent()
                if chunk is not None:
                    yield inference_pb2.InferResponse(chunk=chunk)
            receipt = self.receipt(request.body, request.endpoint)
            yield inference_pb2.InferResponse(conclusion=inference_pb2.Conclusion(receipt=receipt))
        finally:
            self.running -= 1
            self.left.set()

    def add_to(self, server: grpc.aio.Server) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, server)
        whole_answer_pb2_grpc.add_WholeAnswerServiceServicer_to_server(self, server)

    async def InferWhole(self, request: Any, context: Any) -> whole_answer_pb2.InferWholeResponse:  # noqa: N802
        self.asked_whole += 1
        answer = whole_answer_pb2.InferWholeResponse()
        async with aclosing(cast(AsyncGenerator[Any, None], self.Infer(request.request, context))) as parts:
            async for message in parts:
                match message.WhichOneof("part"):
                    case "head":
                        answer.head.MergeFrom(message.head)
                    case "chunk":
                        answer.body += message.chunk
                    case _:
                        answer.conclusion.MergeFrom(message.conclusion)
        if self.refuses_as_too_long:
            status = status_of(AnswerTooLarge("too long"))
            details = ((STATUS_DETAILS_KEY, status.SerializeToString()),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "", details)
        if self.omits is not None:
            answer.ClearField(self.omits)
        return answer

    async def ListModels(self, request: Any, context: Any) -> inference_pb2.ListModelsResponse:  # noqa: N802
        return inference_pb2.ListModelsResponse()

    def receipt(self, body: bytes, endpoint: str = endpoints.CHAT.path) -> bytes:
        returned = digest(b"other" if self.forges else b"".join(self.chunks))
        unsigned = Receipt(
            receipt_id=self.said.get("receipt_id", "rcpt-node"),
            chat_id=None,
            model=self.said.get("model", MODEL),
            workload_keyset_digest=digest(b"node"),
            endpoint=self.said.get("endpoint", endpoint),
            method="POST",
            served_at=1,
            events=(
                RequestReceived(digest(self.said.get("body", body))),
                *(() if self.generated is None else (self.generated,)),
                ResponseReturned(returned),
            ),
            key_id="node-receipt",
        )
        return receipts.sign(unsigned, self.key)

    def provider(self, endpoint: str | None = None, **changes: Any) -> registry_pb2.Provider:
        """What the registry says of it."""
        endpoint = endpoint or self.target
        provider = registry_pb2.Provider(
            spiffe_id=self.lease.certificate.spiffe_id,
            endpoint=endpoint,
            models=[registry_pb2.Model(id=MODEL, weights_sha256=bytes.fromhex(WEIGHTS))],
            spki_sha256=self.lease.certificate.spki_sha256,
            session_id=bytes.fromhex(draft_session(self.lease, endpoint).session_id),
            lease_until_ms=int(self.lease.until * 1000),
            load=registry_pb2.Load(capacity=4),
        )
        provider.MergeFrom(registry_pb2.Provider(**changes))
        return provider

    async def _be_silent(self) -> None:
        over = asyncio.Event()
        asyncio.get_running_loop().call_later(self.silent_seconds, over.set)
        await over.wait()

    async def _wait(self) -> None:
        self.waiting.set()
        await self.go_on.wait()
