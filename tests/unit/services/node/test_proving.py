"""A server that nobody knows serves once it has shown that it wants its key and keeps prompts apart, and not before."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from libs.aci import receipt
from libs.aci.endpoints import CHAT, COMPLETIONS, MESSAGES, Endpoint
from libs.aci.receipt_events import PolicyInForce
from libs.identity.gpu_watch import GpuStanding
from libs.policy.engine_server import SERVER, EngineServer
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import measure
from services.node.channel import EngineChannel, EngineUnavailable
from services.node.engine import SupervisedEngine, open_engine
from services.node.generation import Claimed, Conclusion, Generation, Head, Request
from services.node.installed import EngineNotInstalled, engine_name
from services.node.launch import EngineSettings, Launch, plan
from services.node.proving import KeyIgnored, PromptsShared, require_kept_apart, require_key_wanted
from services.node.receipts import ReceiptSigner
from tests.fakes.engine_channels import channel_to
from tests.fakes.prompt_cache import PromptCache, as_it_is, hits_alone, nothing

pytestmark = pytest.mark.timeout(300)

MODEL = "smollm2-135m"
POLICY = PolicyInForce(1, "sha256:" + "0" * 64)
PATIENCE_SECONDS = 150.0
SETTINGS = EngineSettings(model=MODEL, context_tokens=256, parallel=1)
OPTIONS = (
    *("--key-variable", "FOREIGN_API_KEY", "--weights", "{weights}", "--model-alias", "{model}", "--threads", "1"),
    *("--context", "{context_tokens}", "--parallel", "{parallel}", "--socket", "{socket}"),
)


def measured(*arguments: str, endpoints: frozenset[Endpoint] | None = None) -> MeasuredEngine:
    program = EngineServer(sys.executable, "llama.cpp b9000", "FOREIGN_API_KEY", cache_salt=False)
    return MeasuredEngine(SERVER, arguments=arguments, endpoints=endpoints, server=program)


OWN = measured("-I", "-m", "services.node.embedded", *OPTIONS, endpoints=frozenset({CHAT, COMPLETIONS, MESSAGES}))
"""The embedded engine's server, started as one of others."""


@asynccontextmanager
async def engine(folder: Path, found: MeasuredEngine) -> AsyncIterator[tuple[SupervisedEngine, Launch]]:
    launch = plan(SETTINGS, found, await engine_name(found))
    async with open_engine(SETTINGS, launch, await measure(launch.weights), folder) as running:
        yield running, launch


async def test_a_server_that_nobody_knew_serves_under_its_measured_name(tmp_path: Path) -> None:
    signer = ReceiptSigner()
    async with engine(tmp_path, OWN) as (running, launch):
        await asyncio.wait_for(running.until_ready(), PATIENCE_SECONDS)
        weights = await measure(launch.weights)
        claimed = Claimed(launch.name, launch.arguments_sha256, {MODEL: weights.manifest.digest})
        generation = Generation(running, claimed, signer, lambda: POLICY, GpuStanding())
        assert generation.endpoints == sorted(endpoint.path for endpoint in (CHAT, COMPLETIONS, MESSAGES))
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}
        request = Request(CHAT.path, json.dumps(asked).encode(), "request-1", "tenant-1")
        async with aclosing(generation.generate(request, PATIENCE_SECONDS)) as parts:
            head, *chunks, conclusion = [part async for part in parts]
        # The key is in its environment, and in no argument.
        argv = argv_of(running)
        assert argv[:4] == [sys.executable, "-I", "-m", "services.node.embedded"]
        assert not any(len(part) == 64 and "/" not in part for part in argv)
    assert head == Head(200, "application/json")
    body = b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))
    assert json.loads(body)["usage"]["completion_tokens"] == 3
    assert isinstance(conclusion, Conclusion)
    signed = receipt.verify_signed_by(conclusion.receipt, signer.public_key)
    receipt.verify_exchange(
        signed, request_body=request.body, response_hash="sha256:" + hashlib.sha256(body).hexdigest()
    )
    generated = json.loads(conclusion.receipt)["event_log"]
    (own,) = [event for event in generated if event["type"] == "teemesh.generation"]
    assert own["engine"] == "openai-server llama.cpp b9000"
    assert own["engine_args_sha256"] == launch.arguments_sha256.hex()
    assert own["weights_sha256"] == weights.manifest.digest.hex()


def argv_of(engine: SupervisedEngine) -> list[str]:
    return Path(f"/proc/{engine.pid}/cmdline").read_bytes().decode().split("\0")


@pytest.mark.parametrize(
    ("fault", "reason"), [("--caching", "ENGINE_PROMPTS_SHARED"), ("--keyless", "ENGINE_KEY_IGNORED")]
)
async def test_the_real_server_with_a_shared_cache_or_without_its_key_never_serves(
    tmp_path: Path, fault: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with engine(tmp_path, measured("-m", "tests.fakes.llama_server", *OPTIONS, fault)) as (running, _):
        unfit, ready = (asyncio.create_task(until()) for until in (running.until_found_unfit, running.until_ready))
        await asyncio.wait({unfit, ready}, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        assert (unfit.done(), running.ready) == (True, False)
        ready.cancel()
        with pytest.raises(EngineUnavailable):
            async with running.post(CHAT, b"{}", 1.0):
                pass
    assert reason in "".join(capfd.readouterr())


async def test_a_program_that_cannot_be_run_is_not_installed(tmp_path: Path) -> None:
    missing = EngineServer(str(tmp_path / "server"), "a server", "A_KEY", cache_salt=False)
    arguments = ("{weights}", "{socket}", "{parallel}")
    with pytest.raises(EngineNotInstalled):
        await engine_name(MeasuredEngine(SERVER, arguments=arguments, server=missing))


Told = Callable[[int], dict[str, Any] | None]


@pytest.mark.parametrize(
    ("places", "parted", "told", "salted"),
    [
        (0, False, as_it_is, False),
        # One cache, and as many prompts in it as are asked: found again by their salt alone.
        (1, True, as_it_is, True),
        (1, True, hits_alone, True),
        (0, False, as_it_is, True),
    ],
)
async def test_what_keeps_nothing_or_keeps_it_by_salt_is_fit(
    tmp_path: Path, places: int, parted: bool, told: Told, salted: bool
) -> None:
    cache = PromptCache(places, parted=parted, told=told)
    async with channel_to(tmp_path, cache.application()) as channel:
        for endpoint in (CHAT, COMPLETIONS):
            await require_kept_apart(channel, endpoint, MODEL, salted=salted, parallel=3, context_tokens=256)


@pytest.mark.parametrize(
    ("places", "parted", "told", "salted"),
    [
        (1, False, as_it_is, False),
        # Requests are put into places in turn: only the last of them all meets what the first one left.
        (4, False, as_it_is, False),
        (1, False, hits_alone, False),
        # Whoever says nothing may keep anything.
        (0, False, nothing, False),
        (0, False, hits_alone, False),
        (0, False, nothing, True),
        (0, False, hits_alone, True),
        # It is given salts and does not read them.
        (1, False, as_it_is, True),
        (1, False, hits_alone, True),
        (4, False, as_it_is, True),
    ],
)
async def test_what_shares_prompts_or_does_not_say_so_is_unfit(
    tmp_path: Path, places: int, parted: bool, told: Told, salted: bool
) -> None:
    cache = PromptCache(places, parted=parted, told=told)
    async with channel_to(tmp_path, cache.application()) as channel:
        with pytest.raises(PromptsShared) as refusal:
            await require_kept_apart(channel, CHAT, MODEL, salted=salted, parallel=3, context_tokens=256)
    assert refusal.value.reason == "ENGINE_PROMPTS_SHARED"


async def test_a_salted_cache_of_large_blocks_is_asked_for_as_many_words_as_fill_one(tmp_path: Path) -> None:
    cache = PromptCache(1, parted=True, told=hits_alone, block=1000)
    async with channel_to(tmp_path, cache.application()) as channel:
        await require_kept_apart(channel, CHAT, MODEL, salted=True, parallel=1, context_tokens=8192)
        with pytest.raises(PromptsShared, match="of the same salt"):
            await require_kept_apart(channel, CHAT, MODEL, salted=True, parallel=1, context_tokens=1024)
    shared = PromptCache(1, parted=False, told=hits_alone, block=1000)
    async with channel_to(tmp_path, shared.application()) as channel:
        with pytest.raises(PromptsShared, match="of what another asked"):
            await require_kept_apart(channel, CHAT, MODEL, salted=True, parallel=1, context_tokens=8192)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        [],
        {},
        {"prompt_tokens_details": {"cached_tokens": None}},
        {"prompt_tokens_details": {"cached_tokens": False}},
        {"prompt_tokens_details": {"cached_tokens": -1}},
        {"prompt_tokens_details": {"cached_tokens": "0"}},
        {"prompt_tokens_details": 0},
    ],
    ids=json.dumps,
)
async def test_what_is_no_count_counts_for_nothing(tmp_path: Path, usage: object) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"usage": usage})

    served = web.Application()
    served.router.add_post("/{path:.*}", answer)
    async with channel_to(tmp_path, served) as channel:
        with pytest.raises(PromptsShared, match="does not say"):
            await require_kept_apart(channel, CHAT, MODEL, salted=False, parallel=1, context_tokens=256)


@pytest.mark.parametrize(("status", "raised"), [(200, KeyIgnored), (400, EngineUnavailable), (503, EngineUnavailable)])
async def test_only_a_refusal_shows_that_the_key_is_wanted(
    tmp_path: Path, status: int, raised: type[Exception]
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({}, status=status if request.headers["Authorization"] != "Bearer key" else 401)

    served = web.Application()
    served.router.add_post("/{path:.*}", answer)
    async with channel_to(tmp_path, served) as channel:
        await require_key_wanted(channel, CHAT, MODEL)
        async with EngineChannel(tmp_path / "e.sock", "another") as another:
            with pytest.raises(raised):
                await require_key_wanted(another, CHAT, MODEL)


async def test_a_server_that_fails_at_the_question_is_not_fit_yet(tmp_path: Path) -> None:
    async with channel_to(tmp_path, web.Application()) as channel:
        with pytest.raises(EngineUnavailable):
            await require_kept_apart(channel, CHAT, MODEL, salted=False, parallel=1, context_tokens=256)
