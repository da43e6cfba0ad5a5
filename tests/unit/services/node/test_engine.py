"""The real engine with the real model: chat through `generation`, aborts, and a life after kill -9."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from libs.aci import endpoints, receipt
from libs.aci.endpoints import Endpoint
from libs.aci.receipt_events import PolicyInForce
from libs.identity.gpu_watch import GpuStanding
from libs.policy.measured_engine import MeasuredEngine
from libs.process import Program, supervised
from libs.weights import measure
from services.node.channel import EngineChannel, EngineUnavailable
from services.node.engine import EngineLoad, SupervisedEngine, open_engine
from services.node.environment import inherited
from services.node.generation import Claimed, Conclusion, Generation, Head, Part, Request
from services.node.launch import EngineSettings, plan
from services.node.receipts import ReceiptSigner
from tests.faults.patience import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "smollm2-135m"
CHAT = endpoints.CHAT.path
POLICY = PolicyInForce(1, "sha256:" + "0" * 64)
PATIENCE_SECONDS = 60.0
QUESTION = [{"role": "user", "content": "Say hi."}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SupervisedEngine]:
    settings = EngineSettings(model=MODEL, context_tokens=1024, parallel=1, threads=1)
    launch = plan(settings, MeasuredEngine("embedded"), "xllamacpp")
    weights = await measure(launch.weights)
    async with open_engine(settings, launch, weights, tmp_path_factory.mktemp("engine")) as running:
        await asyncio.wait_for(running.until_ready(), PATIENCE_SECONDS)
        yield running


@pytest.fixture
def signer() -> ReceiptSigner:
    return ReceiptSigner()


@pytest.fixture
def generation(engine: SupervisedEngine, signer: ReceiptSigner) -> Generation:
    return Generation(
        engine, Claimed("an engine", b"\x0a" * 32, {MODEL: b"\x0b" * 32}), signer, lambda: POLICY, GpuStanding()
    )


def asked(question: str, **members: object) -> Request:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0, **members}
    return Request(CHAT, json.dumps(body).encode(), "request-1", "tenant-1")


async def answered(generation: Generation, request: Request) -> list[Part]:
    async with aclosing(generation.generate(request, PATIENCE_SECONDS)) as parts:
        return [part async for part in parts]


async def test_a_buffered_answer_is_receipted(generation: Generation, signer: ReceiptSigner) -> None:
    request = asked("What is the capital of France? Answer in one sentence.", max_tokens=12)
    head, *chunks, conclusion = await answered(generation, request)

    assert head == Head(200, "application/json")
    body = b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))
    assert json.loads(body)["usage"]["completion_tokens"] > 1
    assert isinstance(conclusion, Conclusion)
    signed = receipt.verify_signed_by(conclusion.receipt, signer.public_key)
    receipt.verify_exchange(
        signed, request_body=request.body, response_hash="sha256:" + hashlib.sha256(body).hexdigest()
    )
    # Nothing is added for this engine: what it answered is what was asked.
    assert signed.forwarded is not None
    assert signed.forwarded.body_hash == signed.received.body_hash
    assert signed.model == MODEL


async def test_a_stream_ends_with_done_and_is_receipted(generation: Generation, signer: ReceiptSigner) -> None:
    request = asked("List three primary colors.", max_tokens=8, stream=True)
    head, *chunks, conclusion = await answered(generation, request)

    assert head == Head(200, "text/event-stream")
    body = b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))
    # Where both are busy, several events come in one piece.
    assert body.count(b"data: {") > 2
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")
    assert isinstance(conclusion, Conclusion)
    signed = receipt.verify_signed_by(conclusion.receipt, signer.public_key)
    receipt.verify_exchange(
        signed, request_body=request.body, response_hash="sha256:" + hashlib.sha256(body).hexdigest()
    )


async def at(generation: Generation, endpoint: Endpoint, **members: object) -> bytes:
    """What is answered there, its head being that of a success."""
    body = json.dumps({"model": MODEL, **members}).encode()
    head, *chunks, _ = await answered(generation, Request(endpoint.path, body, "request-1", "tenant-1"))
    assert isinstance(head, Head)
    assert head.status == 200
    return b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))


async def test_one_engine_generates_and_embeds(generation: Generation) -> None:
    answers = [
        json.loads(await at(generation, endpoints.EMBEDDINGS, input=[text]))
        for text in ("red", "red", "a railway timetable")
    ]
    same, again, other = (answer["data"][0]["embedding"] for answer in answers)
    assert same == again != other
    assert len(same) == len(other) > 100


async def test_as_much_is_embedded_as_may_be_asked(generation: Generation) -> None:
    answer = json.loads(await at(generation, endpoints.EMBEDDINGS, input="a " * 1000))
    assert answer["usage"]["prompt_tokens"] > 900


async def test_messages_are_answered_counted_and_streamed(generation: Generation) -> None:
    asked = {"messages": QUESTION, "temperature": 0}
    answer = json.loads(await at(generation, endpoints.MESSAGES, max_tokens=3, **asked))
    assert (answer["type"], answer["usage"]["output_tokens"]) == ("message", 3)
    counted = json.loads(await at(generation, endpoints.COUNT_TOKENS, messages=QUESTION))
    assert counted["input_tokens"] == answer["usage"]["input_tokens"]
    stream = await at(generation, endpoints.MESSAGES, max_tokens=3, stream=True, **asked)
    assert stream.startswith(b"event: message_start\n")
    assert b"event: message_stop\n" in stream


async def test_responses_are_answered_and_streamed(generation: Generation) -> None:
    answer = json.loads(await at(generation, endpoints.RESPONSES, input="Hi", max_output_tokens=3))
    assert (answer["object"], answer["usage"]["output_tokens"]) == ("response", 3)
    stream = await at(generation, endpoints.RESPONSES, input="Hi", max_output_tokens=3, stream=True)
    assert stream.startswith(b"event: response.created\n")
    assert b"event: response.completed\n" in stream


CONFIDED = "Patient Josef Bruckner, born 1961, PIN 4711. " * 6
CONFIDED_TURNS = [{"role": "user", "content": CONFIDED}]
CONFIDING: list[tuple[Endpoint, dict[str, object]]] = [
    (endpoints.CHAT, {"messages": CONFIDED_TURNS, "max_tokens": 1}),
    (endpoints.COMPLETIONS, {"prompt": CONFIDED, "max_tokens": 1}),
    (endpoints.MESSAGES, {"messages": CONFIDED_TURNS, "max_tokens": 1}),
    (endpoints.RESPONSES, {"input": CONFIDED, "max_output_tokens": 1}),
]


def cached_tokens(usage: dict[str, Any]) -> int:
    """By whichever name the endpoint's own API has for it."""
    if "cache_read_input_tokens" in usage:
        return int(usage["cache_read_input_tokens"])
    details = usage.get("prompt_tokens_details") or usage["input_tokens_details"]
    return int(details["cached_tokens"])


@pytest.mark.parametrize(("endpoint", "members"), CONFIDING, ids=lambda value: getattr(value, "path", ""))
async def test_no_tenant_finds_anothers_prompt_in_the_engines_cache(
    generation: Generation, endpoint: Endpoint, members: dict[str, object]
) -> None:
    """The engine has one slot: whatever it kept of the first prompt, the second would meet."""
    body = json.dumps({"model": MODEL, **members}).encode()
    for tenant in ("victim", "attacker"):
        _, *chunks, _ = await answered(generation, Request(endpoint.path, body, "request-1", tenant))
        answer = json.loads(b"".join(chunk for chunk in chunks if isinstance(chunk, bytes)))
        assert cached_tokens(answer["usage"]) == 0


@pytest.mark.parametrize(("endpoint", "members"), CONFIDING[:2], ids=lambda value: getattr(value, "path", ""))
async def test_an_engine_that_is_told_to_keep_prompts_says_that_it_found_one(
    engine: SupervisedEngine, endpoint: Endpoint, members: dict[str, object]
) -> None:
    """Past the node: what the test above counts is counted. At the other endpoints the engine can be told nothing."""
    body = json.dumps({"model": MODEL, **members, "cache_prompt": True}).encode()
    found = []
    for _ in range(2):
        async with engine.post(endpoint, body, PATIENCE_SECONDS) as answer:
            found.append(cached_tokens(json.loads(b"".join([chunk async for chunk in answer.chunks]))["usage"]))
    assert found[1] > 100


@pytest.mark.parametrize(("endpoint", "members"), CONFIDING, ids=lambda value: getattr(value, "path", ""))
@pytest.mark.parametrize(
    "chosen",
    [
        {"cache_prompt": True},
        {"cache_prompt": True, "id_slot": 0},
        {"n_cache_reuse": 1},
        {"repeat_last_n": 2**31 - 1, "repeat_penalty": 1.1},
        {"top_logprobs": 1_000_000},
        {"echo": True, "logprobs": 1},
    ],
    ids=lambda chosen: next(iter(chosen)),
)
async def test_nobody_chooses_a_cache_or_memory_of_the_engines(
    generation: Generation, endpoint: Endpoint, members: dict[str, object], chosen: dict[str, object]
) -> None:
    body = json.dumps({"model": MODEL, **members, **chosen}).encode()
    head, refusal, conclusion = await answered(generation, Request(endpoint.path, body, "request-1", "attacker"))
    assert head == Head(400, "application/json")
    assert isinstance(refusal, bytes)
    assert any(name in json.loads(refusal)["error"]["message"] for name in chosen)
    assert isinstance(conclusion, Conclusion)
    assert receipt.parse(conclusion.receipt).forwarded is None


async def test_a_request_that_the_engine_refuses_is_a_response(generation: Generation) -> None:
    request = Request(CHAT, b'{"model":"smollm2-135m","messages":"no array"}', "r", "t")
    head, *_ = await answered(generation, request)
    assert isinstance(head, Head)
    assert head.status == 400


async def test_leaving_a_stream_frees_the_engine_at_once(generation: Generation, engine: SupervisedEngine) -> None:
    """The only slot would be busy for many times longer than the second question takes."""
    endless = asked("Count from one to one thousand.", max_tokens=900, stream=True, ignore_eos=True)
    async with aclosing(generation.generate(endless, PATIENCE_SECONDS)) as parts:
        assert isinstance(await anext(parts), Head)
        assert isinstance(await anext(parts), bytes)
        assert engine.load == EngineLoad(running=1, waiting=0, capacity=1)
    assert engine.load == EngineLoad(running=0, waiting=0, capacity=1)

    head, *_ = await asyncio.wait_for(answered(generation, asked("Hi", max_tokens=1)), 5)
    assert head == Head(200, "application/json")


def socket_of(engine: SupervisedEngine) -> Path:
    arguments = Path(f"/proc/{engine.pid}/cmdline").read_bytes().split(b"\0")
    # The key is 64 hex digits; none of the arguments, which every local user can read, is.
    assert not any(len(argument) == 64 and b"/" not in argument for argument in arguments)
    return Path(os.fsdecode(arguments[arguments.index(b"--socket") + 1]))


def variables_of(engine: SupervisedEngine) -> set[str]:
    entries = Path(f"/proc/{engine.pid}/environ").read_bytes().split(b"\0")
    return {os.fsdecode(entry).partition("=")[0] for entry in entries if entry}


async def test_the_engine_inherits_nothing_that_is_not_known(engine: SupervisedEngine) -> None:
    assert "PYTEST_CURRENT_TEST" in os.environ
    names = variables_of(engine)
    known = {"PATH", "HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
    assert {"PATH", "TEEMESH_ENGINE_KEY"} <= names <= {*known, "VLLM_CPU_KVCACHE_SPACE", "TEEMESH_ENGINE_KEY"}


async def test_the_engine_wants_its_key_which_is_not_in_its_arguments(engine: SupervisedEngine) -> None:
    socket = socket_of(engine)
    modes = [os.stat(path).st_mode & 0o077 for path in (socket, socket.parent)]
    assert modes == [0, 0]
    async with EngineChannel(socket, "another key") as stranger:
        with pytest.raises(EngineUnavailable, match="401"):
            await stranger.probe(endpoints.CHAT, MODEL)


async def test_a_killed_engine_comes_back(generation: Generation, engine: SupervisedEngine) -> None:
    killed = engine.pid
    assert killed is not None
    stream = asked("Count from one to one thousand.", max_tokens=900, stream=True, ignore_eos=True)
    async with aclosing(generation.generate(stream, PATIENCE_SECONDS)) as parts:
        await anext(parts)
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(EngineUnavailable):
            _ = [part async for part in parts]
    await asyncio.wait_for(engine.until_ended(), PATIENCE_SECONDS)
    assert not engine.ready
    with pytest.raises(EngineUnavailable):
        await answered(generation, asked("Hi", max_tokens=1))

    await asyncio.wait_for(engine.until_ready(), PATIENCE_SECONDS)
    head, *_ = await answered(generation, asked("Hi", max_tokens=1))
    assert head == Head(200, "application/json")
    assert engine.pid not in (None, killed)


async def test_an_engine_that_ends_at_once_is_never_ready(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no weights")
    settings = EngineSettings(model=MODEL, weights=broken)
    launch = plan(settings, MeasuredEngine("embedded"), "xllamacpp")
    async with open_engine(settings, launch, await measure(broken), tmp_path) as engine:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.until_ready(), 1.0)
        assert not engine.ready


TOLD: list[dict[str, object]] = [
    {"grammar": 'root ::= "MARKER" nosuchrule'},
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"schema": {"type": "string", "pattern": "MARKER(?=x)"}},
        }
    },
    {"tools": "MARKER"},
    {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "MARKER",
                    "parameters": {"type": "object", "properties": {"a": {"type": "string", "pattern": "MARKER(?!y)"}}},
                },
            }
        ],
        "tool_choice": "required",
    },
    {"messages": [{"role": 7, "content": "MARKER"}]},
    {"messages": [{"role": "MARKER", "content": "MARKER"}]},
    {"logit_bias": "MARKER"},
]


async def test_nothing_that_is_asked_comes_into_the_nodes_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The node's own standard error is the file of its log. llama.cpp writes schemas, grammars and bad JSON to its."""
    settings = EngineSettings(model=MODEL, context_tokens=512, parallel=1, threads=1)
    launch = plan(settings, MeasuredEngine("embedded"), "xllamacpp")
    asked: dict[str, object] = {"model": MODEL, "messages": QUESTION, "max_tokens": 1}
    bodies = [json.dumps(asked | told).encode() for told in TOLD] + [b'{"model": MARKER']
    async with open_engine(settings, launch, await measure(launch.weights), tmp_path) as engine:
        for _ in range(2):
            await asyncio.wait_for(engine.until_ready(), PATIENCE_SECONDS)
            for body in bodies:
                # Past the node's own table: what it lets pass may grow.
                async with engine.post(endpoints.CHAT, body, PATIENCE_SECONDS) as answer:
                    _ = [chunk async for chunk in answer.chunks]
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
            await asyncio.wait_for(engine.until_ended(), PATIENCE_SECONDS)
    # What it wrote was read to its end before the engine was over.
    written = "".join(capfd.readouterr())
    assert "engine answers" in written
    assert "MARKER" not in written


async def test_an_engine_that_is_heard_writes_what_it_is_asked(tmp_path: Path) -> None:
    """Started as the node starts it, but for whom it is heard by: else there would be nothing to keep from the log."""
    settings = EngineSettings(model=MODEL, context_tokens=512, parallel=1, threads=1)
    launch = plan(settings, MeasuredEngine("embedded"), "xllamacpp")
    socket, key = tmp_path / "engine.sock", "key"
    environment = {**inherited(), **launch.environment, launch.key_variable: key}
    written = tmp_path / "written"
    program = Program("engine", tuple(launch.argv(launch.weights, socket)), environment, log=written)
    async with supervised(program), EngineChannel(socket, key) as channel:

        async def answers() -> bool:
            with suppress(EngineUnavailable):
                await channel.probe(endpoints.CHAT, MODEL)
                return True
            return False

        await asyncio.wait_for(until(answers), PATIENCE_SECONDS)
        for told in TOLD:
            body = json.dumps({"model": MODEL, "messages": QUESTION, "max_tokens": 1} | told).encode()
            async with channel.post(endpoints.CHAT, body, PATIENCE_SECONDS) as answer:
                _ = [chunk async for chunk in answer.chunks]
    assert b"MARKER" in written.read_bytes()
