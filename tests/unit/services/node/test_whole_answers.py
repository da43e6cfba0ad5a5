"""Whole answers over the wire: what the parts say, in one message of bounded length."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from teemesh.inference.v1 import inference_pb2, whole_answer_pb2, whole_answer_pb2_grpc

from libs.aci.encoding import digest
from libs.aci.endpoints import CHAT, Endpoint
from libs.aci.receipt import verify_signed_by
from libs.aci.receipt_events import PolicyInForce
from libs.aci.whole_answers import MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES
from libs.identity.gpu_watch import GpuStanding
from libs.rpc.calls import MiddlewareInterceptor
from libs.rpc.errors import reason_of
from libs.rpc.middleware import map_errors
from services.node.channel import Answer
from services.node.engine import EngineLoad
from services.node.generation import Claimed, Generation
from services.node.receipts import ReceiptSigner
from services.node.requests_fault import RequestsFault
from services.node.whole_answers import METHODS, WholeAnswerServicer, binding

PATIENCE_SECONDS = 20.0
BODY = b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}'
REQUEST = whole_answer_pb2.InferWholeRequest(
    request=inference_pb2.InferRequest(endpoint=CHAT.path, body=BODY, request_id="r", tenant_id="t")
)


class PiecesEngine:
    """Answers with these pieces, and waits for ever after them unless it is told to end."""

    ready = True
    salted = False
    lacks: frozenset[str] = frozenset()
    requests_faults: tuple[RequestsFault, ...] = ()
    calling = None
    endpoints = (CHAT,)
    load = EngineLoad(running=0, waiting=0, capacity=1)

    def __init__(self, *pieces: bytes, ends: bool = True) -> None:
        self._pieces = pieces
        self._ends = ends
        self.asked = asyncio.Event()
        self.left = asyncio.Event()

    @asynccontextmanager
    async def post(
        self, endpoint: Endpoint, body: bytes, timeout_seconds: float, sequences: int = 1
    ) -> AsyncIterator[Answer]:
        try:
            yield Answer(200, "application/json", self._chunks())
        finally:
            self.left.set()

    async def until_ready(self) -> None: ...

    async def _chunks(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        self.asked.set()
        if not self._ends:
            await asyncio.Event().wait()


@asynccontextmanager
async def serving(
    engine: PiecesEngine, receipts: ReceiptSigner
) -> AsyncIterator[whole_answer_pb2_grpc.WholeAnswerServiceStub]:
    claimed = Claimed("an engine", bytes(32), {"m": bytes(32)})
    generation = Generation(engine, claimed, receipts, lambda: PolicyInForce(1, "sha256:" + "0" * 64), GpuStanding())
    whole = binding(WholeAnswerServicer(generation, 30.0))
    server = grpc.aio.server(
        interceptors=(MiddlewareInterceptor([map_errors]),),
        options=(("grpc.max_send_message_length", whole.answer_bytes),),
    )
    whole.add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    limit = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=limit) as channel:
        yield whole_answer_pb2_grpc.WholeAnswerServiceStub(channel)
    await server.stop(None)


async def test_head_body_and_receipt_are_those_of_the_parts() -> None:
    receipts = ReceiptSigner()
    async with serving(PiecesEngine(b'{"id":', b'"1"}'), receipts) as stub:
        answer = await stub.InferWhole(REQUEST, timeout=PATIENCE_SECONDS)
    assert (answer.head.status, answer.head.content_type) == (200, "application/json")
    assert answer.body == b'{"id":"1"}'
    receipt = verify_signed_by(answer.conclusion.receipt, receipts.public_key)
    assert (receipt.received.body_hash, receipt.returned.body_hash) == (digest(BODY), digest(answer.body))


async def test_what_is_wrong_with_the_body_is_an_answer() -> None:
    refused = whole_answer_pb2.InferWholeRequest()
    refused.CopyFrom(REQUEST)
    refused.request.body = b'{"model":"other"}'
    async with serving(PiecesEngine(b"{}"), ReceiptSigner()) as stub:
        answer = await stub.InferWhole(refused, timeout=PATIENCE_SECONDS)
    assert (answer.head.status, answer.HasField("conclusion")) == (404, True)


async def test_a_caller_that_leaves_ends_the_generation() -> None:
    engine = PiecesEngine(b"{", ends=False)
    async with serving(engine, ReceiptSigner()) as stub:
        call = stub.InferWhole(REQUEST, timeout=PATIENCE_SECONDS)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await engine.asked.wait()
            call.cancel()
            await engine.left.wait()


async def test_the_longest_answer_passes_and_a_longer_one_ends_at_once() -> None:
    megabyte = bytes(1 << 20)
    pieces = [megabyte] * (MAX_ANSWER_BYTES >> 20)
    async with serving(PiecesEngine(*pieces), ReceiptSigner()) as stub:
        assert len((await stub.InferWhole(REQUEST, timeout=PATIENCE_SECONDS)).body) == MAX_ANSWER_BYTES
    engine = PiecesEngine(*pieces, b"x", ends=False)
    async with serving(engine, ReceiptSigner()) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.InferWhole(REQUEST, timeout=PATIENCE_SECONDS)
        assert reason_of(refusal.value) == "ANSWER_TOO_LARGE"
        assert engine.left.is_set()


def test_only_routers_with_a_lease_may_call() -> None:
    (rule,) = METHODS.values()
    assert rule.roles == frozenset({"router"})
    assert rule.lease
    assert not rule.long_lived
