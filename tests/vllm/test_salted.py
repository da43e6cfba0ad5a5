"""vLLM as a node starts it: before it serves it shows that salts part its cache, wherever it counts what it finds."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from libs.aci.endpoints import CHAT, COMPLETIONS, MESSAGES, RESPONSES
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import measure
from services.node.channel import EngineChannel
from services.node.engine import open_engine
from services.node.installed import engine_name
from services.node.launch import EngineSettings, plan
from services.node.proving import PromptsShared, require_kept_apart
from tests.mesh.running import short_folder
from tests.vllm.engine_process import key_of

WHERE = os.environ.get("TEEMESH_VLLM")
ENVIRONMENT = Path(str(WHERE)).absolute()
START_SECONDS = 300.0
MODEL = "m"
ASKED = (CHAT, COMPLETIONS, MESSAGES, RESPONSES)

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(WHERE is None, reason="TEEMESH_VLLM does not name an environment with vLLM: make test-vllm"),
]


async def test_it_is_ready_once_it_has_parted_a_prompt_wherever_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    python, arguments = str(ENVIRONMENT / "bin" / "python"), ("--dtype", "bfloat16", "--enforce-eager")
    measured = MeasuredEngine("vllm", python, arguments, endpoints=frozenset(ASKED))
    settings = EngineSettings(
        model=MODEL, weights=ENVIRONMENT / "weights" / "smollm2-135m", context_tokens=1024, parallel=2
    )
    launch = plan(settings, measured, await engine_name(measured))
    weights = await measure(launch.weights)
    with short_folder() as folder:
        for name, value in (("HOME", str(folder)), ("TMPDIR", str(folder)), ("VLLM_CPU_KVCACHE_SPACE", "1")):
            monkeypatch.setenv(name, value)
        async with open_engine(settings, launch, weights, folder) as engine:
            await asyncio.wait_for(engine.until_ready(), START_SECONDS)
            # Without salts it would have shared them, and the same question says so.
            async with EngineChannel(folder / "engine" / "engine.sock", key_of(engine)) as channel:
                for endpoint in ASKED:
                    with pytest.raises(PromptsShared, match="tokens cached of what another asked"):
                        await require_kept_apart(
                            channel, endpoint, MODEL, salted=False, parallel=1, context_tokens=settings.context_tokens
                        )
