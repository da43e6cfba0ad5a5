"""An engine whose server answers while its model hangs, or is busy with others: what is heard of it, and what is not.

Its model answers the node's question at its start and no other.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.aci.endpoints import CHAT, COUNT_TOKENS, DEFINED, EVENT_STREAM, RESPONSES, Endpoint
from libs.aci.receipt_events import PolicyInForce
from libs.identity.gpu_watch import GpuStanding
from libs.policy.engine_server import SOCKET, WEIGHTS
from libs.weights import measure
from services.node.channel import EngineSilent, EngineTooSlow, EngineUnavailable
from services.node.engine import EngineLoad, SupervisedEngine, open_engine
from services.node.generation import Claimed, Generation, Head, Request
from services.node.launch import EngineSettings, Launch
from services.node.receipts import ReceiptSigner
from tests.fakes.hanging_engine import GENERATED

MODEL = "m"
PATIENCE_SECONDS = 60.0
SILENT_SECONDS = 1.5
LONG_SECONDS = 3 * SILENT_SECONDS
"""Nearly twice what it takes to find one that hangs."""
QUESTION = b'{"model":"m","messages":[{"role":"user","content":"Hi"}]}'


@asynccontextmanager
async def engine(folder: Path, *arguments: str, answers: int = 1, **settings: Any) -> AsyncIterator[SupervisedEngine]:
    """One that need not be ready."""
    weights = folder / "model"
    weights.write_bytes(b"weights")
    launch = Launch(
        name="hanging",
        weights=weights,
        command=(
            *(sys.executable, "-m", "tests.fakes.hanging_engine", "--answers", str(answers), *arguments),
            *("--model", WEIGHTS, "--uds", SOCKET),
        ),
        arguments=(),
        environment={},
        key_variable="TEST_ENGINE_KEY",
        endpoints=frozenset(DEFINED),
        salted=False,
        work_metrics=frozenset({GENERATED}),
    )
    given = EngineSettings(**{"model": MODEL, "silent_seconds": SILENT_SECONDS, "parallel": 2, **settings})
    async with open_engine(given, launch, await measure(weights), folder) as running:
        yield running


@asynccontextmanager
async def ready_engine(folder: Path, *arguments: str, **settings: Any) -> AsyncIterator[SupervisedEngine]:
    async with engine(folder, *arguments, **settings) as running:
        await asyncio.wait_for(running.until_ready(), PATIENCE_SECONDS)
        yield running


async def asked(engine: SupervisedEngine, body: bytes = QUESTION, endpoint: Endpoint = CHAT) -> None:
    async with engine.post(endpoint, body, LONG_SECONDS) as answer:
        _ = [chunk async for chunk in answer.chunks]


@pytest.mark.parametrize("parallel", [1, 2], ids=["full", "with a place left"])
async def test_an_engine_whose_work_goes_on_is_left_alone_though_no_question_is_answered(
    tmp_path: Path, parallel: int
) -> None:
    """As with a prompt that fills the cache: there are places, and whoever comes waits."""
    async with ready_engine(tmp_path, "--tells", "--works", parallel=parallel) as running:
        former = running.pid
        with pytest.raises(EngineTooSlow):
            await asked(running)
        assert (running.pid, running.ready) == (former, True)


async def test_an_engine_that_says_nothing_of_its_work_is_left_alone_while_its_sequences_take_all_places(
    tmp_path: Path,
) -> None:
    async with ready_engine(tmp_path) as running:
        former = running.pid
        with pytest.raises(EngineTooSlow):
            async with running.post(CHAT, QUESTION, LONG_SECONDS, sequences=2) as answer:
                _ = [chunk async for chunk in answer.chunks]
        assert (running.pid, running.ready) == (former, True)


@pytest.mark.parametrize(
    ("parallel", "arguments"), [(1, ["--tells"]), (2, ["--tells"]), (2, [])], ids=["full", "stands still", "mute"]
)
async def test_an_engine_whose_work_stands_still_is_killed_though_its_server_answers(
    tmp_path: Path, parallel: int, arguments: list[str]
) -> None:
    async with ready_engine(tmp_path, *arguments, parallel=parallel) as running:
        with pytest.raises(EngineUnavailable):
            async with running.post(CHAT, QUESTION, PATIENCE_SECONDS) as answer:
                _ = [chunk async for chunk in answer.chunks]
        await asyncio.wait_for(running.until_ready(), PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, b'{"messages":"no list"}'),
        (COUNT_TOKENS, QUESTION),
        (RESPONSES, b'{"model":"m","input":"Hi","stream":true}'),
    ],
    ids=["refusals", "counts", "beginnings"],
)
async def test_what_the_server_says_without_its_model_is_no_sign_of_life(
    tmp_path: Path, endpoint: Endpoint, body: bytes
) -> None:
    async with ready_engine(tmp_path) as running:

        async def ask_on() -> None:
            while True:
                async with running.post(endpoint, body, PATIENCE_SECONDS) as answer:
                    await anext(answer.chunks)

        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(EngineUnavailable):
                await ask_on()


async def test_a_stream_that_waits_for_a_place_has_the_requests_time_and_no_head_before_it_begins(
    tmp_path: Path,
) -> None:
    async with ready_engine(tmp_path, "--tells", "--works") as running:
        claimed = Claimed("an engine", bytes(32), {MODEL: bytes(32)})
        policy = PolicyInForce(1, "sha256:" + "0" * 64)
        generation = Generation(running, claimed, ReceiptSigner(), lambda: policy, GpuStanding())
        request = Request(CHAT.path, QUESTION[:-1] + b',"stream":true}', "r", "t")
        async with aclosing(generation.generate(request, LONG_SECONDS)) as parts:
            with pytest.raises(EngineTooSlow):
                await anext(parts)


BEGUN = b'{"model":"m","input":"Hi","stream":true}'
"""Its stream begins at once, and then gives nothing."""


async def test_a_stream_that_has_begun_is_waited_for_while_the_engine_works_for_others(tmp_path: Path) -> None:
    """As vLLM has one wait whose place in the cache it gave to another."""
    async with ready_engine(tmp_path, "--tells", "--works") as running:
        claimed = Claimed("an engine", bytes(32), {MODEL: bytes(32)})
        policy = PolicyInForce(1, "sha256:" + "0" * 64)
        generation = Generation(running, claimed, ReceiptSigner(), lambda: policy, GpuStanding())
        async with aclosing(generation.generate(Request(RESPONSES.path, BEGUN, "r", "t"), LONG_SECONDS)) as parts:
            assert await anext(parts) == Head(200, EVENT_STREAM)
            assert await anext(parts)
            # Whoever reads hears of it within the time that a stream may be silent.
            assert await anext(parts) == b""
            with pytest.raises(EngineTooSlow):
                _ = [part async for part in parts]


@pytest.mark.parametrize("arguments", [["--tells"], []], ids=["stands still", "full and mute"])
async def test_a_stream_that_has_begun_ends_where_nothing_shows_that_the_engine_works(
    tmp_path: Path, arguments: list[str]
) -> None:
    """Its server answers all the while."""
    async with (
        ready_engine(tmp_path, *arguments, parallel=1) as running,
        running.post(RESPONSES, BEGUN, PATIENCE_SECONDS) as answer,
    ):
        assert await anext(answer.chunks)
        with pytest.raises(EngineSilent):
            await anext(answer.chunks)


async def test_what_fills_an_engine_is_counted_by_sequences(tmp_path: Path) -> None:
    async with ready_engine(tmp_path, "--tells", "--works", parallel=2) as running:
        waiting = asyncio.create_task(asked(running))
        async with running.post(COUNT_TOKENS, QUESTION, LONG_SECONDS, sequences=3):
            assert running.load == EngineLoad(running=2, waiting=2, capacity=2)
        assert running.load == EngineLoad(running=1, waiting=0, capacity=2)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert running.load == EngineLoad(running=0, waiting=0, capacity=2)


async def test_an_engine_that_gives_no_answer_in_time_is_never_ready(tmp_path: Path) -> None:
    async with engine(tmp_path, answers=0, start_seconds=0.3) as running:
        is_ready = asyncio.create_task(running.until_ready())
        await asyncio.wait_for(running.until_ended(), PATIENCE_SECONDS)
        await asyncio.wait_for(running.until_ended(), PATIENCE_SECONDS)
        assert not is_ready.done()
        is_ready.cancel()
