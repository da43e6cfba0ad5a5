"""The real engine and the schemas that it is asked to keep to: none ends it, and none holds it up for others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
import pytest_asyncio

from libs.aci import endpoints, receipt
from libs.aci.receipt_events import PolicyInForce
from libs.identity.gpu_watch import GpuStanding
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import measure
from services.node.engine import SupervisedEngine, open_engine
from services.node.generation import Claimed, Conclusion, Generation, Head, Request
from services.node.launch import EngineSettings, plan
from services.node.receipts import ReceiptSigner
from tests.fakes.schemas import AS_LARGE_AS_TAKEN, ENDLESS, USUAL

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "smollm2-135m"
PATIENCE_SECONDS = 60.0
QUESTION = [{"role": "user", "content": "Say hi."}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SupervisedEngine]:
    settings = EngineSettings(model=MODEL, context_tokens=1024, parallel=1, threads=1)
    launch = plan(settings, MeasuredEngine("embedded"), "xllamacpp")
    async with open_engine(
        settings, launch, await measure(launch.weights), tmp_path_factory.mktemp("engine")
    ) as running:
        await asyncio.wait_for(running.until_ready(), PATIENCE_SECONDS)
        yield running


@pytest.fixture
def generation(engine: SupervisedEngine) -> Generation:
    claimed = Claimed("an engine", b"\x0a" * 32, {MODEL: b"\x0b" * 32})
    return Generation(engine, claimed, ReceiptSigner(), lambda: PolicyInForce(1, "sha256:" + "0" * 64), GpuStanding())


async def answered(generation: Generation, **members: Any) -> tuple[Head, bytes, Conclusion]:
    body = json.dumps({"model": MODEL, "messages": QUESTION, "max_tokens": 4, **members}).encode()
    request = Request(endpoints.CHAT.path, body, "request-1", "tenant-1")
    async with aclosing(generation.generate(request, PATIENCE_SECONDS)) as parts:
        head, *chunks, conclusion = [part async for part in parts]
    assert isinstance(head, Head)
    assert isinstance(conclusion, Conclusion)
    return head, b"".join(chunk for chunk in chunks if isinstance(chunk, bytes)), conclusion


def formatted(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


def called(schema: Any) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "f", "description": "Does it.", "parameters": schema}}
    return {"tools": [tool], "tool_choice": "required"}


@pytest.mark.parametrize("asked", [formatted, called])
@pytest.mark.parametrize("schema", ENDLESS.values(), ids=ENDLESS)
async def test_a_schema_without_an_end_reaches_no_engine(generation: Generation, schema: Any, asked: Any) -> None:
    head, refusal, conclusion = await answered(generation, **asked(schema))
    assert head == Head(400, "application/json")
    assert json.loads(refusal)["error"]["type"] == "invalid_request_error"
    assert receipt.parse(conclusion.receipt).forwarded is None


@pytest.mark.parametrize("asked", [formatted, called])
@pytest.mark.parametrize("schema", AS_LARGE_AS_TAKEN.values(), ids=AS_LARGE_AS_TAKEN)
async def test_the_largest_schemas_are_not_the_engines_end(
    generation: Generation, engine: SupervisedEngine, schema: Any, asked: Any
) -> None:
    """It may find them too large for itself. It says so, or answers, and goes on."""
    before = engine.pid
    head, body, conclusion = await answered(generation, **asked(schema))
    assert head.status in (200, 400), body
    assert receipt.parse(conclusion.receipt).forwarded is not None
    assert (await answered(generation))[0].status == 200
    assert engine.pid == before


@pytest.mark.parametrize("asked", [formatted, called])
@pytest.mark.parametrize("schema", USUAL.values(), ids=USUAL)
async def test_usual_schemas_are_kept_to(generation: Generation, schema: Any, asked: Any) -> None:
    head, body, _ = await answered(generation, **asked(schema))
    assert head.status == 200, body
