"""Responsible for what a user would pick instead: other gateways in front of the same engine, each its own process.

None of them proves or logs anything. They are installed in an environment of their own (`make bench-gateways`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import ssl
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from libs.process import tethered
from tests.bench.gateways.engine import MODEL
from tests.bench.gateways.load import Gateway
from tests.fakes.pki import ThrowawayCa
from tests.fakes.ports import free_port
from tests.mesh.running import ROOT

_READY_SECONDS = 240.0
_SAID = 2000
_LITELLM = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(16)}",
}


@dataclass(frozen=True, slots=True)
class Rival:
    """One gateway: how it is started."""

    name: str
    command: Sequence[str]
    url: str
    folder: Path
    """Where what it says goes."""
    environment: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    headers: Mapping[str, str] | None = None


@asynccontextmanager
async def engine(folder: Path) -> AsyncIterator[str]:
    """Run the engine that costs nothing; give its URL."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.gateways.engine", "--port", str(port)]
    async with running(Rival("engine alone", command, f"http://127.0.0.1:{port}", folder)) as gateway:
        yield gateway.url


def rivals(environment: Path, engine_url: str, folder: Path) -> list[Rival]:
    """Return all of them; `environment` is where they are installed."""
    programs = environment / "bin"
    ports = [str(free_port()) for _ in range(4)]
    config = folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n- model_name: {MODEL}\n  litellm_params:\n    model: openai/{MODEL}\n"
        f"    api_base: {engine_url}/v1\n    api_key: none\n"
    )
    authority = ThrowawayCa()
    for name, data in zip(("tls.key", "tls.pem"), authority.leaf(None, "localhost", ip="127.0.0.1"), strict=True):
        (folder / name).write_bytes(data)
    trusted = ssl.create_default_context(cadata=authority.pem.decode())
    here, quiet = "--host 127.0.0.1 --port", "--log-level error --prometheus-port"
    tls = f"--ssl-certificate {folder / 'tls.pem'} --ssl-keyfile {folder / 'tls.key'}"
    told = {
        "LiteLLM, 2 workers": f"litellm --config {config} {here} {ports[0]} --num_workers 2 --telemetry False",
        "vllm-router": f"vllm-router {here} {ports[1]} --worker-urls {engine_url} {quiet} {free_port()}",
        "sglang-router": f"sglang-router launch {here} {ports[2]} --worker-urls {engine_url} {quiet} {free_port()}",
        "granian + aiohttp, TLS": f"granian --interface asgi {here} {ports[3]} {tls} --no-ws --log-level error "
        "tests.bench.gateways.passthrough:app",
    }
    found = [
        Rival(name, shlex.split(f"{programs}/{line}"), f"http://127.0.0.1:{port}", folder)
        for port, (name, line) in zip(ports, told.items(), strict=True)
    ]
    key = {"Authorization": f"Bearer {_LITELLM['LITELLM_MASTER_KEY']}"}
    found[0] = replace(found[0], environment=_LITELLM, headers=key)
    url = found[3].url.replace("http:", "https:")
    found[3] = replace(found[3], url=url, environment={"PASSTHROUGH_ENGINE": engine_url}, tls=trusted)
    return found


@asynccontextmanager
async def running(rival: Rival) -> AsyncIterator[Gateway]:
    """Run one until it is let go; it serves when this begins."""
    with (rival.folder / f"{rival.name}.log").open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *tethered(list(rival.command)),
            cwd=ROOT,
            env={**os.environ, **rival.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        await _until_ready(rival)
        yield Gateway(rival.name, rival.url, rival.tls, rival.headers)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()


async def _until_ready(rival: Rival) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Are you there?"}]}
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout, headers=rival.headers) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                asked = client.post(f"{rival.url}/v1/chat/completions", json=body, ssl=rival.tls or False)
                async with asked as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)
    said = (rival.folder / f"{rival.name}.log").read_text(errors="replace")[-_SAID:]
    raise RuntimeError(f"{rival.name} does not serve:\n{said}")
