"""Responsible for what a client pays to verify: the router before its first prompt, and one chat after it."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

from libs.client.checks import Check
from libs.client.exchange import Exchange, chat_body
from libs.client.session import RouterSession, open_session
from services.cli.chat import read_trust
from services.cli.mesh_reading import MeshReader
from tests.bench.report import Row, Section
from tests.bench.samples import Samples
from tests.mesh.running import RunningMesh

_CHATS = 8
_AGAIN = 4
_MAX_TOKENS = 32


class _Taken:
    """Samples that are taken one after another, each with the CPU time that this process used for it."""

    def __init__(self) -> None:
        self._whole: list[float] = []
        self.cpu: list[float] = []

    def __enter__(self) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self._whole.append(time.perf_counter() - self._started)
        self.cpu.append(time.process_time() - self._cpu)

    @property
    def samples(self) -> Samples:
        return Samples(self._whole, elapsed=sum(self._whole))


async def measure(mesh: RunningMesh, *, seconds: float) -> Section:
    reader = MeshReader(mesh.state / "mesh.json")
    url, key, trust = reader.text("router_url"), reader.text("api_key"), read_trust(reader)
    body = chat_body(
        reader.text("model"), [{"role": "user", "content": "Tell a story."}], stream=True, max_tokens=_MAX_TOKENS
    )
    opened, asked, verified, again = _Taken(), _Taken(), _Taken(), _Taken()
    deadline = time.monotonic() + seconds
    for _ in range(_CHATS):
        if time.monotonic() > deadline:
            break
        async with AsyncExitStack() as stack:
            with opened:
                session = await stack.enter_async_context(open_session(url, key, trust))
            with asked:
                exchange = await _ask(session, body)
            with verified:
                checks = _passed(await session.verify(exchange))
            for _ in range(_AGAIN):
                with again:
                    _passed(await session.verify(exchange))
    base = asked.samples
    cpu = sorted(again.cpu)[len(again.cpu) // 2] * 1000
    return Section(
        "client",
        f"one streamed chat of {_MAX_TOKENS} tokens through the router, unverified",
        "as named",
        [
            Row("open a session (fresh quote, appraisal)", base, opened.samples),
            Row("verify a chat at once (waits for checkpoint)", base, verified.samples),
            Row("verify a chat later (fetch and check)", base, again.samples),
        ],
        [f"{len(checks)} checks each, all passed; CPU of the client for one verification: {cpu:.1f} ms (median)"],
    )


async def _ask(session: RouterSession, body: bytes) -> Exchange:
    async with session.chat(body) as answer:
        async for _ in answer:
            pass
        return answer.exchange


def _passed(checks: list[Check]) -> list[Check]:
    failed = [check for check in checks if not check.passed]
    if failed:
        raise RuntimeError(f"not verified, so its time means nothing: {failed}")
    return checks
