"""The wire side: order of the parts, who may call what, and that a lost caller ends the generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from teemesh.inference.v1 import inference_pb2, inference_pb2_grpc

from libs.aci.endpoints import CHAT, Endpoint
from libs.aci.receipt_events import PolicyInForce
from libs.identity.gpu_watch import GpuStanding
from services.node.channel import Answer
from services.node.engine import EngineLoad
from services.node.generation import Claimed, Generation
from services.node.receipts import ReceiptSigner
from services.node.registration import ServedModel
from services.node.requests_fault import RequestsFault
from services.node.servicer import METHODS, InferenceServicer

PATIENCE_SECONDS = 10.0
REQUEST = inference_pb2.InferRequest(
    endpoint="/v1/chat/completions",
    body=b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}',
    request_id="r",
    tenant_id="t",
)


class EndlessEngine:
    """Sends a first piece and then nothing more, unless it is told to end."""

    ready = True
    salted = False
    lacks: frozenset[str] = frozenset()
    requests_faults: tuple[RequestsFault, ...] = ()
    calling = None
    endpoints = (CHAT,)

    def __init__(self, *, ends: bool, places: int = 1) -> None:
        self.load = EngineLoad(running=0, waiting=0, capacity=places)
        self.sequences: list[int] = []
        self._ends = ends
        self.left = asyncio.Event()

    @asynccontextmanager
    async def post(
        self, endpoint: Endpoint, body: bytes, timeout_seconds: float, sequences: int = 1
    ) -> AsyncIterator[Answer]:
        self.sequences.append(sequences)
        try:
            yield Answer(200, "text/event-stream", self._chunks())
        finally:
            self.left.set()

    async def until_ready(self) -> None: ...

    async def _chunks(self) -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        if not self._ends:
            await asyncio.Event().wait()


@asynccontextmanager
async def serving(engine: EndlessEngine) -> AsyncIterator[inference_pb2_grpc.InferenceServiceStub]:
    generation = Generation(
        engine,
        Claimed("an engine", bytes(32), {"m": bytes(32)}),
        ReceiptSigner(),
        lambda: PolicyInForce(1, "sha256:" + "0" * 64),
        GpuStanding(),
    )
    models = [ServedModel("z", bytes(32)), ServedModel("m", bytes(range(32)))]
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(generation, models, 30.0), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)
    await server.stop(None)


async def test_head_chunks_and_conclusion_come_in_this_order() -> None:
    async with serving(EndlessEngine(ends=True)) as stub:
        parts = [message.WhichOneof("part") async for message in stub.Infer(REQUEST, timeout=PATIENCE_SECONDS)]
    assert parts == ["head", "chunk", "conclusion"]


async def test_a_caller_that_leaves_ends_the_generation() -> None:
    engine = EndlessEngine(ends=False)
    async with serving(engine) as stub:
        call = stub.Infer(REQUEST, timeout=PATIENCE_SECONDS)
        await call.read()
        await call.read()
        call.cancel()
        await asyncio.wait_for(engine.left.wait(), PATIENCE_SECONDS)


async def test_models_are_listed_in_order() -> None:
    async with serving(EndlessEngine(ends=True)) as stub:
        listed = await stub.ListModels(inference_pb2.ListModelsRequest(), timeout=PATIENCE_SECONDS)
    assert [(model.id, model.weights_sha256) for model in listed.models] == [("m", bytes(range(32))), ("z", bytes(32))]


@pytest.mark.parametrize(("method", "roles"), [("Infer", {"router"}), ("ListModels", {"router", "operator"})])
def test_only_these_roles_may_call(method: str, roles: set[str]) -> None:
    rule = METHODS[f"/teemesh.inference.v1.InferenceService/{method}"]
    assert rule.roles == roles
    assert rule.lease
    assert len(METHODS) == 2
