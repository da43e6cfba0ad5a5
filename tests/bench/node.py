"""Responsible for what the node adds between its engine and a router: the same questions to both, in turns.

The node is a mesh's own, in its process, asked over mutual TLS by a member of the role router, on a lease, as routers
ask; nothing else of a router is there. The engine asked directly is a second process, started by the node's own code
with the node's own measured settings. Each is idle while the other is asked.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from teemesh.inference.v1 import inference_pb2, inference_pb2_grpc, whole_answer_pb2, whole_answer_pb2_grpc

from libs import weights
from libs.aci import endpoints
from libs.aci.whole_answers import MAX_MESSAGE_BYTES
from libs.config import load
from libs.identity.member import Member, join
from libs.identity.peers import Peer
from libs.policy.measured_engine import read_engine
from services.cli.mesh.layout import Layout
from services.node.config import Config
from services.node.engine import SupervisedEngine, open_engine
from services.node.installed import engine_name
from services.node.launch import plan
from services.router.config import Config as RouterConfig
from tests.bench.report import Row, Section
from tests.bench.samples import Action, Pairs, in_pairs, percentile
from tests.mesh.running import RunningMesh

_PATH = "/v1/chat/completions"
_SECONDS = 120.0
_TENANT = "bench"
_TOKENS = 32
_PAIRS = 12
_QUESTIONS = {1: 4, 16: 1}
"""How many each of so many clients asks in a row, of each thing in a pair."""
_COMPLETION = re.compile(rb'"completion_tokens": ?(\d+)')
_GOALS = "goals: 0.97 of the engine's tokens/s at 1 and 16 at once; under 2 ms to the first token"


def _question(model: str, *, stream: bool) -> bytes:
    """A question whose answer is always the same, and says how many tokens it has."""
    messages = [{"role": "user", "content": "Count from one to forty in words."}]
    body = {"model": model, "messages": messages, "max_tokens": _TOKENS, "temperature": 0, "stream": stream}
    return json.dumps(body | ({"stream_options": {"include_usage": True}} if stream else {})).encode()


class Tokens:
    """How many were generated, so that both did the same work."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def note(self, status: int, answer: bytes) -> None:
        stated = _COMPLETION.findall(answer)
        if status != 200 or not stated:
            raise RuntimeError(f"answered {status}, tokens unknown: {answer[:500]!r}")
        self.seen.add(int(stated[-1]))


def _of_engine(engine: SupervisedEngine, body: bytes, tokens: Tokens) -> Action:
    async def ask() -> float | None:
        started, first, received = time.perf_counter(), None, bytearray()
        async with engine.post(endpoints.CHAT, body, _SECONDS) as answer:
            async for chunk in answer.chunks:
                first = first or time.perf_counter() - started
                received += chunk
        tokens.note(answer.status, bytes(received))
        return first

    return ask


def _asked(body: bytes) -> inference_pb2.InferRequest:
    return inference_pb2.InferRequest(endpoint=_PATH, body=body, request_id=secrets.token_hex(8), tenant_id=_TENANT)


def _of_node_streamed(node: Peer, body: bytes, tokens: Tokens) -> Action:
    async def ask() -> float | None:
        started, first, received, status = time.perf_counter(), None, bytearray(), 0
        stub = inference_pb2_grpc.InferenceServiceStub(await node.channel(_SECONDS))
        call = stub.Infer(_asked(body), timeout=_SECONDS)
        while isinstance(said := await call.read(), inference_pb2.InferResponse):
            if said.HasField("head"):
                status = said.head.status
            elif said.chunk:
                first = first or time.perf_counter() - started
                received += said.chunk
        tokens.note(status, bytes(received))
        return first

    return ask


def _of_node_whole(node: Peer, body: bytes, tokens: Tokens) -> Action:
    async def ask() -> float | None:
        stub = whole_answer_pb2_grpc.WholeAnswerServiceStub(await node.channel(_SECONDS))
        said = await stub.InferWhole(whole_answer_pb2.InferWholeRequest(request=_asked(body)), timeout=_SECONDS)
        tokens.note(said.head.status, said.body)
        return None

    return ask


@asynccontextmanager
async def _as_router(mesh: RunningMesh, folder: Path) -> AsyncIterator[Member]:
    """A second instance of the mesh's router, as far as its evidence: measured alike, and so believed by nodes."""
    config = load(Layout(mesh.state).config("router"), RouterConfig)
    settings = replace(config.member, instance="bench", state_dir=folder, listen="127.0.0.1:0")
    async with join(settings, "router", {}, registry=config.registry) as member:
        yield member


def vllm_options(environment: Path) -> tuple[str, ...]:
    """Return what a mesh is started with to have vLLM as its engine, built for CPUs, from `make run-vllm`'s folder."""
    # Both engines take it: the mesh's node, and the one that is started here.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    absolute = environment.absolute()
    arguments = ("--dtype", "bfloat16", "--enforce-eager")
    return (
        *("--vllm", str(absolute / "bin" / "python"), "--weights", str(absolute / "weights" / "smollm2-135m")),
        *(f"--vllm-argument={argument}" for argument in arguments),
    )


async def measure(mesh: RunningMesh, folder: Path) -> Section:
    layout = Layout(mesh.state)
    config = load(layout.config("node"), Config)
    measured = read_engine(layout.compose("node").read_text())
    launch = plan(config.engine, measured, await engine_name(measured))
    rows, notes = [], [_GOALS]
    async with (
        open_engine(config.engine, launch, await weights.measure(launch.weights), folder) as engine,
        _as_router(mesh, folder / "router") as router,
    ):
        await engine.until_ready()
        node = router.peer("node", config.endpoint or config.member.listen, answer_bytes=MAX_MESSAGE_BYTES)
        notes.append(
            f"engine: {launch.name}, {config.engine.parallel} requests at once, {config.engine.effective_threads} CPU"
            f" thread(s); answers of {_TOKENS} tokens"
        )
        for stream, of_node in ((True, _of_node_streamed), (False, _of_node_whole)):
            body = _question(config.engine.model, stream=stream)
            for concurrency, in_a_row in _QUESTIONS.items():
                tokens = Tokens()
                pairs = await in_pairs(
                    _of_engine(engine, body, tokens),
                    of_node(node, body, tokens),
                    pairs=_PAIRS,
                    in_a_row=in_a_row,
                    concurrency=concurrency,
                )
                name = f"{'streamed' if stream else 'buffered'}, {concurrency} at once"
                rows.append(Row(name, pairs.base, pairs.ours))
                notes.append(_summary(name, pairs, in_a_row * concurrency, tokens))
    return Section("node", "the engine asked on its unix socket", "the node asked as routers ask", rows, notes)


def _summary(name: str, pairs: Pairs, each: int, tokens: Tokens) -> str:
    """Say what the goals are about: each figure is the median of pairs."""
    if len(tokens.seen) != 1:
        return f"{name}: answers of {sorted(tokens.seen)} tokens, so the work was not the same"
    (count,) = tokens.seen
    spread = f"{min(pairs.ratios):.3f} to {max(pairs.ratios):.3f}"
    rates = f"{pairs.base.rate * count:.1f} and {pairs.ours.rate * count:.1f}"
    said = f"{name}: {pairs.median_ratio:.3f} of the engine's tokens/s ({spread}), {rates}"
    if not pairs.ours.first:
        return said
    firsts = zip(_medians(pairs.base.first, each), _medians(pairs.ours.first, each), strict=True)
    added = statistics.median(ours - base for base, ours in firsts)
    return f"{said}; first token {added * 1000:+.2f} ms"


def _medians(first: Sequence[float], each: int) -> list[float]:
    """Return the median of each pair's samples."""
    return [percentile(first[at : at + each], 50) for at in range(0, len(first), each)]
