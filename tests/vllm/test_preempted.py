"""vLLM with a cache for one: it takes a running stream's place, and the stream is whole all the same."""

from __future__ import annotations

import asyncio
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from libs.aci.endpoints import CHAT
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import measure
from services.node.channel import EngineChannel
from services.node.engine import SupervisedEngine, open_engine
from services.node.installed import engine_name
from services.node.launch import EngineSettings, plan
from tests.mesh.running import short_folder
from tests.vllm.engine_process import key_of

WHERE = os.environ.get("TEEMESH_VLLM")
ENVIRONMENT = Path(str(WHERE)).absolute()
START_SECONDS = 300.0
REQUEST_SECONDS = 200.0
MODEL = "m"

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(WHERE is None, reason="TEEMESH_VLLM does not name an environment with vLLM: make test-vllm"),
]


async def streamed(engine: SupervisedEngine, prompt: str) -> list[bytes]:
    members = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "cache_salt": "s"}
    body = json.dumps(members | {"max_tokens": 900, "ignore_eos": True, "stream": True}).encode()
    async with engine.post(CHAT, body, REQUEST_SECONDS) as answer:
        return [chunk async for chunk in answer.chunks]


async def test_a_stream_whose_place_another_has_taken_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    python = str(ENVIRONMENT / "bin" / "python")
    arguments = ("--dtype", "bfloat16", "--enforce-eager", "--block-size", "128")
    measured = MeasuredEngine("vllm", python, arguments)
    settings = EngineSettings(
        model=MODEL,
        weights=ENVIRONMENT / "weights" / "smollm2-135m",
        context_tokens=1024,
        parallel=2,
        silent_seconds=1.0,
    )
    launch = plan(settings, measured, await engine_name(measured))
    # For CPUs it takes no cache under a GiB. These are 1,408 tokens, and the two streams some 1,900.
    launch = replace(launch, command=(*launch.command, "--num-gpu-blocks-override", "11"))
    weights = await measure(launch.weights)
    with short_folder() as folder:
        for name, value in (("HOME", str(folder)), ("TMPDIR", str(folder)), ("VLLM_CPU_KVCACHE_SPACE", "1")):
            monkeypatch.setenv(name, value)
        async with open_engine(settings, launch, weights, folder) as engine:
            await asyncio.wait_for(engine.until_ready(), START_SECONDS)
            former = engine.pid
            streams = await asyncio.gather(*(streamed(engine, prompt) for prompt in ("Count up.", "Count down.")))
            assert all(b"".join(chunks).endswith(b"data: [DONE]\n\n") for chunks in streams)
            async with EngineChannel(folder / "engine" / "engine.sock", key_of(engine)) as channel:
                said = await channel.metrics()
            assert said is not None
            (preempted,) = re.findall(r"^vllm:num_preemptions_total\S* (\S+)$", said, re.MULTILINE)
            assert float(preempted) > 0
            assert engine.pid == former
