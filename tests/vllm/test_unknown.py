"""vLLM as a server of which the node knows nothing: what it shows of its prefix cache decides whether it serves."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from libs.aci.endpoints import CHAT, COMPLETIONS
from libs.policy.engine_server import SERVER, EngineServer
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import measure
from services.node.engine import open_engine
from services.node.installed import engine_name
from services.node.launch import EngineSettings, plan
from tests.mesh.running import short_folder

WHERE = os.environ.get("TEEMESH_VLLM")
ENVIRONMENT = Path(str(WHERE)).absolute()
START_SECONDS = 300.0
ARGUMENTS = (
    *("-I", "-m", "vllm.entrypoints.openai.api_server", "--model", "{weights}", "--served-model-name", "{model}"),
    *("--uds", "{socket}", "--max-num-seqs", "{parallel}", "--max-model-len", "{context_tokens}"),
    *("--dtype", "bfloat16", "--enforce-eager", "--no-enable-log-requests"),
)
COUNTED = "--enable-prompt-tokens-details"

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(WHERE is None, reason="TEEMESH_VLLM does not name an environment with vLLM: make test-vllm"),
]


@pytest.mark.parametrize(
    ("cache_salt", "arguments", "serves"),
    [
        (True, [COUNTED], True),
        (False, [COUNTED, "--no-enable-prefix-caching"], True),
        # It keeps prompts for all, or does not count what it has of them.
        (False, [COUNTED], False),
        (True, [], False),
    ],
)
async def test_it_serves_where_it_shows_that_tenants_share_no_prompt(
    monkeypatch: pytest.MonkeyPatch, cache_salt: bool, arguments: list[str], serves: bool
) -> None:
    program = EngineServer(str(ENVIRONMENT / "bin" / "python"), "vllm as any other", "VLLM_API_KEY", cache_salt)
    measured = MeasuredEngine(
        SERVER,
        arguments=(*ARGUMENTS, *arguments),
        endpoints=frozenset({CHAT, COMPLETIONS}),
        server=program,
    )
    settings = EngineSettings(
        model="m", weights=ENVIRONMENT / "weights" / "smollm2-135m", context_tokens=1024, parallel=2
    )
    launch = plan(settings, measured, await engine_name(measured))
    weights = await measure(launch.weights)
    with short_folder() as folder:
        for name, value in (("HOME", str(folder)), ("TMPDIR", str(folder)), ("VLLM_CPU_KVCACHE_SPACE", "1")):
            monkeypatch.setenv(name, value)
        async with open_engine(settings, launch, weights, folder) as engine:
            told = [asyncio.create_task(until()) for until in (engine.until_ready, engine.until_found_unfit)]
            await asyncio.wait(told, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            assert [each.done() for each in told] == [serves, not serves]
            assert engine.ready is serves
            for each in told:
                each.cancel()
