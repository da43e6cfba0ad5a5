"""Responsible for what the router adds to a chat: its HTTPS with everything behind it, beside the bare engine.

The engine asked directly is a second process, started by the node's own code with the node's own settings, so the two
share nothing but the machine. The bytes sent are the same.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from libs import weights
from libs.aci import endpoints
from libs.config import load
from libs.policy.measured_engine import MeasuredEngine
from services.cli.mesh.layout import Layout
from services.node.config import Config
from services.node.engine import SupervisedEngine, open_engine
from services.node.launch import plan
from tests.bench.report import Row, Section
from tests.bench.samples import Action, Limit, side_by_side
from tests.mesh.running import RunningMesh

PATH = "/v1/chat/completions"
_SECONDS = 60.0
_PROMPT = "Count from one to forty in words."


def chat_request(model: str, *, stream: bool, max_tokens: int) -> bytes:
    """A request whose answer is always the same."""
    return json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": _PROMPT}],
            "stream": stream,
            "max_tokens": max_tokens,
            "temperature": 0,
        }
    ).encode()


def refused_request(model: str) -> bytes:
    """A request that the engine refuses at once: the whole way and a receipt, without the time of a model."""
    messages = [{"role": "user", "content": _PROMPT}]
    return json.dumps({"model": model, "messages": messages, "response_format": {"type": "none such"}}).encode()


@dataclass(slots=True)
class Asked:
    """What both ways answered, to show that they did the same work."""

    status: int = 200
    """The only one expected."""
    texts: set[str] = field(default_factory=set)

    def note(self, status: int, body: bytes) -> None:
        if status != self.status:
            raise RuntimeError(f"answered {status} instead of {self.status}: {body[:500]!r}")
        if status != 200:
            self.texts.add(body.decode())
        elif body.startswith(b"data:"):
            lines = (line[6:] for line in body.splitlines() if line.startswith(b"data: {"))
            choices = [choice for line in lines for choice in json.loads(line)["choices"]]
            self.texts.add("".join(choice["delta"].get("content") or "" for choice in choices))
        else:
            self.texts.add(json.loads(body)["choices"][0]["message"]["content"])


@asynccontextmanager
async def router_client(mesh: RunningMesh) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTPS client that keeps its connections."""
    described = mesh.mesh
    async with aiohttp.ClientSession(
        base_url=described["router_url"],
        headers={"Authorization": f"Bearer {described['api_key']}", "Content-Type": "application/json"},
        connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=described["router_ca"])),
        timeout=aiohttp.ClientTimeout(total=_SECONDS),
    ) as client:
        yield client


def through_router(client: aiohttp.ClientSession, body: bytes, asked: Asked) -> Action:
    async def ask() -> float | None:
        started, first = time.perf_counter(), None
        received = bytearray()
        async with client.post(PATH, data=body) as response:
            async for chunk in response.content.iter_any():
                first = first or time.perf_counter() - started
                received += chunk
        asked.note(response.status, bytes(received))
        return first

    return ask


def to_engine(engine: SupervisedEngine, body: bytes, asked: Asked) -> Action:
    async def ask() -> float | None:
        started, first = time.perf_counter(), None
        received = bytearray()
        async with engine.post(endpoints.CHAT, body, _SECONDS) as answer:
            async for chunk in answer.chunks:
                first = first or time.perf_counter() - started
                received += chunk
        asked.note(answer.status, bytes(received))
        return first

    return ask


async def measure(mesh: RunningMesh, folder: Path, *, seconds: float) -> Section:
    """Take all combinations, each for at most `seconds`."""
    settings = load(Layout(mesh.state).config("node"), Config).engine
    notes = [
        f"engine: {settings.parallel} requests at once, {settings.effective_threads} CPU thread(s)",
        "where the model works, its own spread is wider than what is added; the refused requests show that alone",
    ]
    rows = []
    launch = plan(settings, MeasuredEngine("embedded"), "xllamacpp")
    async with (
        open_engine(settings, launch, await weights.measure(launch.weights), folder) as engine,
        router_client(mesh) as client,
    ):
        await engine.until_ready()

        async def pair(name: str, body: bytes, status: int, limit: Limit) -> None:
            for concurrency in (1, 2):
                asked = Asked(status)
                actions = to_engine(engine, body, asked), through_router(client, body, asked)
                base, ours = await side_by_side(actions, limit, concurrency=concurrency)
                rows.append(Row(f"{name}, {concurrency} at once", base, ours))
                if len(asked.texts) != 1:
                    notes.append(f"{rows[-1].name}: {len(asked.texts)} different answers, so the work was not the same")

        await pair("refused by the engine", refused_request(settings.model), 400, Limit(500, seconds / 2, in_a_row=10))
        for kind, stream in (("buffered", False), ("streamed", True)):
            for max_tokens in (1, 32):
                body = chat_request(settings.model, stream=stream, max_tokens=max_tokens)
                limit = Limit(count=200, seconds=seconds, in_a_row=3 if max_tokens == 1 else 1)
                await pair(f"{kind}, {max_tokens} token(s)", body, 200, limit)
    return Section("chat", "engine asked directly on its unix socket", "through the router's HTTPS", rows, notes)
