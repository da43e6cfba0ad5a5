"""Responsible for what a client pays to verify: the router before its first prompt, and one chat after it."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

from libs.client.checks import Check
from libs.client.exchange import Exchange, chat_body
from libs.client.session import RouterSession, open_session
from services.cli.chat.command import read_trust
from services.cli.mesh.reading import MeshReader
from tests.bench.report import Row, Section
from tests.bench.samples import Samples, percentile
from tests.mesh.running import RunningMesh

_CHATS = 8
_AGAIN = 4
_MAX_TOKENS = 32


class _Stopwatch:
    """Times of one thing done again and again, and the CPU time that this process used for it each time."""

    def __init__(self) -> None:
        self.whole: list[float] = []
        self.cpu: list[float] = []

    def __enter__(self) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.whole.append(time.perf_counter() - self._started)
        self.cpu.append(time.process_time() - self._cpu)


def _together(*parts: list[float]) -> Samples:
    """What a client waits that does one after the other."""
    whole = [sum(each) for each in zip(*parts, strict=True)]
    return Samples(whole, elapsed=sum(whole))


async def measure(mesh: RunningMesh, *, seconds: float) -> Section:
    reader = MeshReader(mesh.state / "mesh.json")
    url, key, trust = reader.text("router_url"), reader.text("api_key"), read_trust(reader)
    body = chat_body(
        reader.text("model"), [{"role": "user", "content": "Tell a story."}], stream=True, max_tokens=_MAX_TOKENS
    )
    opened, asked, verified, again = _Stopwatch(), _Stopwatch(), _Stopwatch(), _Stopwatch()
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
    base = _together(asked.whole)
    later = [chat for chat in asked.whole for _ in range(_AGAIN)]
    return Section(
        "client",
        f"one streamed chat of {_MAX_TOKENS} tokens through the router, unverified",
        "the same with what is named",
        [
            Row("with a session opened before", base, _together(opened.whole, asked.whole)),
            Row("verified at once", base, _together(asked.whole, verified.whole)),
            Row("verified later", base, _together(later, again.whole)),
        ],
        [
            f"{len(checks)} checks each, all passed",
            f"verifying later, alone: {_median(again.whole)} ms, of which the client's CPU {_median(again.cpu)} ms; "
            f"opening a session, alone: {_median(opened.whole)} ms, CPU {_median(opened.cpu)} ms (medians)",
            "at once means that a checkpoint over the receipt may have to be waited for, up to a second",
        ],
    )


def _median(seconds: list[float]) -> str:
    return f"{percentile(seconds, 50) * 1000:.1f}"


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
