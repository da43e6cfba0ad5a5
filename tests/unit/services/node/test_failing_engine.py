"""The real engine when it hangs, or has no memory: what runs ends, and another one serves. And what would end it, and
does not reach it."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.aci import endpoints, receipt
from libs.aci.endpoints import Endpoint
from libs.aci.json_values import MOST_LEVELS
from libs.aci.receipt_events import PolicyInForce
from libs.identity.gpu_watch import GpuStanding
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import measure
from services.node.channel import EngineSilent, EngineUnavailable
from services.node.engine import SupervisedEngine, open_engine
from services.node.generation import Claimed, Conclusion, Generation, Head, Part, Request
from services.node.launch import EngineSettings, plan
from services.node.receipts import ReceiptSigner

MODEL = "smollm2-135m"
POLICY = PolicyInForce(1, "sha256:" + "0" * 64)
PATIENCE_SECONDS = 90.0
SILENT_SECONDS = 3.0
"""On a busy machine a well engine may take some time, and says so by what it gives."""
SPARE_BYTES = 8 << 20


@asynccontextmanager
async def engine(folder: Path, **settings: Any) -> AsyncIterator[SupervisedEngine]:
    given = EngineSettings(model=MODEL, **{"context_tokens": 2048, "parallel": 2, "threads": 1, **settings})
    launch = plan(given, MeasuredEngine("embedded"), "xllamacpp")
    async with open_engine(given, launch, await measure(launch.weights), folder) as running:
        await asyncio.wait_for(running.until_ready(), PATIENCE_SECONDS)
        yield running


def generation(engine: SupervisedEngine, signer: ReceiptSigner | None = None) -> Generation:
    claimed = Claimed("an engine", b"\x0a" * 32, {MODEL: b"\x0b" * 32})
    return Generation(engine, claimed, signer or ReceiptSigner(), lambda: POLICY, GpuStanding())


def request(endpoint: Endpoint, **members: object) -> Request:
    return Request(endpoint.path, json.dumps({"model": MODEL, **members}).encode(), "request-1", "tenant-1")


def asked(**members: object) -> Request:
    messages = [{"role": "user", "content": "Count from one to one thousand."}]
    return request(endpoints.CHAT, **{"messages": messages, "temperature": 0, "max_tokens": 1, **members})


def endless() -> Request:
    return asked(max_tokens=1900, stream=True, ignore_eos=True)


async def answered(engine: SupervisedEngine, request: Request) -> list[Part]:
    async with aclosing(generation(engine).generate(request, PATIENCE_SECONDS)) as parts:
        return [part async for part in parts]


async def is_replaced(engine: SupervisedEngine, former: int | None) -> None:
    """Wait until another process answers."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        await engine.until_ended()
        await engine.until_ready()
    assert engine.pid not in (None, former)
    assert (await answered(engine, asked()))[0] == Head(200, "application/json")


async def test_an_engine_that_stops_in_a_stream_is_silent_then_killed_and_started_again(tmp_path: Path) -> None:
    async with engine(tmp_path, silent_seconds=SILENT_SECONDS) as running:
        former = running.pid
        assert former is not None
        async with aclosing(generation(running).generate(endless(), PATIENCE_SECONDS)) as parts:
            assert isinstance(await anext(parts), Head)
            assert isinstance(await anext(parts), bytes)
            os.kill(former, signal.SIGSTOP)
            with pytest.raises(EngineSilent) as ended:
                _ = [part async for part in parts]
        assert ended.value.reason == "ENGINE_SILENT"
        await is_replaced(running, former)


async def test_an_answer_that_is_not_streamed_ends_with_the_engine_that_hangs(tmp_path: Path) -> None:
    """All of its places taken, so that no question of the node's would find one."""
    async with engine(tmp_path, silent_seconds=SILENT_SECONDS, parallel=1) as running:
        former = running.pid
        assert former is not None
        os.kill(former, signal.SIGSTOP)
        with pytest.raises(EngineUnavailable):
            await answered(running, asked(max_tokens=1900))
        await is_replaced(running, former)


async def test_an_engine_whose_places_are_taken_by_long_answers_is_left_alone(tmp_path: Path) -> None:
    """Nothing is heard of it for several times longer than it may be silent, and a question would have to wait."""
    async with engine(tmp_path, silent_seconds=SILENT_SECONDS, parallel=1) as running:
        former = running.pid
        assert (await answered(running, asked(max_tokens=900, ignore_eos=True)))[0] == Head(200, "application/json")
        assert (running.pid, running.ready) == (former, True)


async def test_an_engine_whose_places_are_taken_by_one_bodys_prompts_is_left_alone(tmp_path: Path) -> None:
    async with engine(tmp_path, silent_seconds=SILENT_SECONDS) as running:
        former = running.pid
        prompts = ["Count from one to one thousand.", "Count down from one thousand."]
        both = request(endpoints.COMPLETIONS, prompt=prompts, max_tokens=500, ignore_eos=True)
        assert (await answered(running, both))[0] == Head(200, "application/json")
        assert (running.pid, running.ready) == (former, True)


async def test_an_engine_that_hangs_while_nobody_asks_is_found(tmp_path: Path) -> None:
    async with engine(tmp_path, silent_seconds=SILENT_SECONDS) as running:
        former = running.pid
        assert former is not None
        os.kill(former, signal.SIGSTOP)
        await asyncio.wait_for(running.until_away(), PATIENCE_SECONDS)
        await is_replaced(running, former)


def data_bytes(engine: SupervisedEngine) -> int:
    """What RLIMIT_DATA counts of the engine's process (proc(5), VmData)."""
    lines = Path(f"/proc/{engine.pid}/status").read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith("VmData:")]
    return int(kilobytes) * 1024


def oom_score_adj(engine: SupervisedEngine) -> int:
    return int(Path(f"/proc/{engine.pid}/oom_score_adj").read_text())


def large_input() -> Request:
    """The engine needs some 300 MB to answer it."""
    return request(endpoints.EMBEDDINGS, input="a " * 1500)


async def test_what_an_engine_has_no_memory_for_is_an_error_with_a_receipt_and_others_are_served(
    tmp_path: Path,
) -> None:
    async with engine(tmp_path) as unbounded:
        memory_bytes = data_bytes(unbounded) + SPARE_BYTES
        assert oom_score_adj(unbounded) == 500
    async with engine(tmp_path, memory_bytes=memory_bytes) as bounded:
        assert resource.prlimit(bounded.pid or 0, resource.RLIMIT_DATA) == (memory_bytes, memory_bytes)
        signer = ReceiptSigner()
        async with aclosing(generation(bounded, signer).generate(large_input(), PATIENCE_SECONDS)) as parts:
            head, body, conclusion = [part async for part in parts]
        assert head == Head(502, "application/json")
        assert isinstance(body, bytes)
        assert json.loads(body)["error"]["type"] == "upstream_error"
        assert isinstance(conclusion, Conclusion)
        receipt.verify_signed_by(conclusion.receipt, signer.public_key)
        assert (await answered(bounded, asked()))[0] == Head(200, "application/json")


async def test_an_engine_that_cannot_start_in_its_memory_is_never_ready(tmp_path: Path) -> None:
    given = EngineSettings(model=MODEL, threads=1, memory_bytes=64 << 20)
    launch = plan(given, MeasuredEngine("embedded"), "xllamacpp")
    async with open_engine(given, launch, await measure(launch.weights), tmp_path) as running:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await running.until_ended()
        assert not running.ready
        with pytest.raises(EngineUnavailable):
            await answered(running, asked())


def called(arguments: str) -> list[Request]:
    """A call in a conversation: in each API that has its arguments as a text."""
    user = {"role": "user", "content": "Hi"}
    call = {"type": "function", "id": "c", "function": {"name": "f", "arguments": arguments}}
    made = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    return [
        asked(messages=[user, {"role": "assistant", "content": None, "tool_calls": [call]}, user]),
        request(endpoints.RESPONSES, input=[user, made, user], max_output_tokens=1),
    ]


async def test_arguments_that_would_end_the_engine_do_not_reach_it(tmp_path: Path) -> None:
    """It reads them as JSON for its template, and calls itself for each of their levels."""
    async with engine(tmp_path) as running:
        former = running.pid
        for attack in called("[" * 200_000 + "]" * 200_000):
            head, refusal, conclusion = await answered(running, attack)
            assert head == Head(400, "application/json")
            assert isinstance(refusal, bytes)
            assert "arguments must be JSON of at most 64 levels" in json.loads(refusal)["error"]["message"]
            assert isinstance(conclusion, Conclusion)
            assert receipt.parse(conclusion.receipt).forwarded is None
        for usual in called("[" * MOST_LEVELS + "]" * MOST_LEVELS):
            assert (await answered(running, usual))[0] == Head(200, "application/json")
        assert (running.pid, running.ready) == (former, True)


async def test_what_only_the_engine_can_tell_of_a_request_is_refused_as_the_requests_fault(tmp_path: Path) -> None:
    """It says of itself that it failed: that an input is too long for it, or that a text is no JSON."""
    async with engine(tmp_path, context_tokens=512) as running:
        for attack, told in (
            (request(endpoints.EMBEDDINGS, input=["a", [5] * 513]), "an input must have at most 512 tokens here"),
            *((call, "the arguments of a call must be JSON") for call in called("{")),
        ):
            head, refusal, _ = await answered(running, attack)
            assert head == Head(400, "application/json")
            assert isinstance(refusal, bytes)
            assert json.loads(refusal)["error"] == {
                "message": told,
                "type": "invalid_request_error",
                "code": None,
                "param": None,
            }
        longest = request(endpoints.EMBEDDINGS, input=[5] * 512)
        assert (await answered(running, longest))[0] == Head(200, "application/json")
