"""The packaged model's chat template, as the real engine renders it: the model's own where there are no tools."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from libs.aci.endpoints import CHAT
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import measure, packaged_weights
from services.node.chat_template import SMOLLM2_CALL
from services.node.engine import SupervisedEngine, open_engine
from services.node.launch import EngineSettings, plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE_SECONDS = 60.0
USER = {"role": "user", "content": "How warm is it in Paris?"}
SYSTEM = {"role": "system", "content": "Be brief."}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "id": "call1", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
MADE = '{"name": "weather", "arguments": {"city": "Paris"}}'
RESULT = {"role": "tool", "tool_call_id": "call1", "content": "21 degrees"}


@asynccontextmanager
async def running(folder: Path, weights: Path | None) -> AsyncIterator[SupervisedEngine]:
    settings = EngineSettings(weights=weights, context_tokens=1024, parallel=1, threads=1)
    launch = plan(settings, MeasuredEngine("embedded"), "xllamacpp")
    async with open_engine(settings, launch, await measure(launch.weights), folder) as engine:
        await asyncio.wait_for(engine.until_ready(), PATIENCE_SECONDS)
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SupervisedEngine]:
    async with running(tmp_path_factory.mktemp("ours"), None) as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SupervisedEngine]:
    """With the template that the model brings."""
    async with running(tmp_path_factory.mktemp("own"), packaged_weights()) as engine:
        yield engine


async def asked(engine: SupervisedEngine, path: str, **members: Any) -> Any:
    body = json.dumps({"model": "smollm2-135m", **members}).encode()
    async with engine.post(replace(CHAT, path=path), body, PATIENCE_SECONDS) as answer:
        told = b"".join([chunk async for chunk in answer.chunks])
        assert answer.status == 200, told
        return json.loads(told)


async def prompt(engine: SupervisedEngine, *messages: Any, **members: Any) -> str:
    """What the model reads of these messages."""
    told: str = (await asked(engine, "/apply-template", messages=messages, **members))["prompt"]
    return told


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, USER],
        [USER, {"role": "assistant", "content": "Warm."}, USER],
        [SYSTEM, USER, {"role": "assistant", "content": " Warm.\n"}, SYSTEM, USER],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "'{{ messages }}' <tool_call> \u00e9\n\n"}],
        [{"role": "user", "content": [{"type": "text", "text": "How warm"}, {"type": "text", "text": "is it?"}]}],
        [{"role": "developer", "content": "Be brief."}, USER],
    ],
    ids=["user", "system", "answered", "two systems", "empty", "hostile", "parts", "developer"],
)
async def test_without_tools_a_prompt_is_what_the_models_own_template_makes_of_it(
    engine: SupervisedEngine, bare: SupervisedEngine, messages: list[Any]
) -> None:
    assert await prompt(engine, *messages) == await prompt(bare, *messages)


async def test_the_models_own_template_passes_over_tools(bare: SupervisedEngine) -> None:
    assert await prompt(bare, USER, tools=[WEATHER]) == await prompt(bare, USER)


async def test_tools_calls_and_their_results_are_in_the_prompt(engine: SupervisedEngine) -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    told = await prompt(engine, SYSTEM, USER, called, RESULT, tools=[WEATHER])
    system, user, call, result, rest = told.split("<|im_start|>")[1:]
    assert system.startswith("system\nBe brief.\n")
    assert '"weather"' in system
    assert user == f"user\n{USER['content']}<|im_end|>\n"
    assert call == f"assistant\n<tool_call>[{MADE}]</tool_call><|im_end|>\n"
    assert result == "user\n<tool_response>\n21 degrees\n</tool_response><|im_end|>\n"
    assert rest == "assistant\n"


async def test_words_and_several_calls_of_one_turn_are_in_the_prompt(engine: SupervisedEngine) -> None:
    called = {"role": "assistant", "content": "I look.", "tool_calls": [CALL, CALL]}
    told = await prompt(engine, USER, called, RESULT, tools=[WEATHER])
    assert f"<|im_start|>assistant\nI look.<tool_call>[{MADE}, {MADE}]</tool_call><|im_end|>\n" in told


async def test_an_answer_that_is_begun_with_a_call_is_ended_as_one_by_the_tools_schema(
    engine: SupervisedEngine,
) -> None:
    begun = {"role": "assistant", "content": SMOLLM2_CALL}
    choice = await demanded(engine, [USER, begun], "required", max_tokens=128)
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")


async def test_this_engine_heeds_no_name_and_lets_the_model_talk_first(engine: SupervisedEngine) -> None:
    """Why the node helps it. Where this fails, it need not any more."""
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        answer = await demanded(engine, [USER], choice, max_tokens=8)
        assert answer["message"]["content"]
        assert not answer["message"].get("tool_calls")


async def demanded(engine: SupervisedEngine, messages: list[Any], choice: Any, max_tokens: int) -> Any:
    """The model's choice where it is not left one."""
    answer = await asked(
        engine,
        "/v1/chat/completions",
        messages=messages,
        tools=[WEATHER],
        tool_choice=choice,
        max_tokens=max_tokens,
        temperature=0,
    )
    (only,) = answer["choices"]
    return only
