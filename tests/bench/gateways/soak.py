"""Runs the router for an hour at a share of what it can: `python -m tests.bench.gateways.soak`.

Requests come at a fixed rate whether or not earlier ones were answered, and a latency counts from when its request was
due. Afterwards every answer is looked for in the log.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle

from rich.console import Console

from tests.bench import machine
from tests.bench.gateways.load import GatewayFailed, NotHeard, asking, prompt
from tests.bench.gateways.logged import body_hash_of, leaf_hashes, unlogged
from tests.bench.gateways.mesh import mesh_before, router_of
from tests.bench.processes import cpu_seconds, resident_megabytes
from tests.bench.samples import Action, percentile
from tests.mesh.processes import descendants
from tests.mesh.running import RunningMesh, short_folder

_AT_ONCE = 16
_SATURATING_SECONDS = 60.0
_STREAMED_EVERY = 4
_CONNECTIONS = 100
"""Of each kind, as many as OpenAI's SDK keeps. A client that opened one for each request that waits would, after each
pause, begin a TLS session for each of them: of that a router that has a fifth left does not recover for seconds."""
_ON_THE_WAY = ("router", "node", "ledger", "broker")
_MOST_WAITING = 1000
"""Requests that wait for their answers; what is due beyond is not asked, and counted."""
_RECEIPT_ID = b"x-receipt-id: "
_ERROR = b'data: {"error":'
_LAST_EVENT = b"data: [DONE]\n\n"
_ERROR_SIZE = 500
_ERROR_TYPE = re.compile(r'"type": ?"([a-z_]+)"')


@dataclass(slots=True)
class Minute:
    """What one minute brought: latencies in seconds."""

    latencies: list[float] = field(default_factory=list)
    """From when a request was due to the end of its answer."""
    failed: Counter[str] = field(default_factory=Counter)
    asked_again: int = 0
    """Requests on kept connections that ended before a byte of the answer, as those do that nobody used for a while."""
    memory: dict[str, int] = field(default_factory=dict)
    """Resident memory of each service with the processes it started, MB, at the minute's end."""
    cpu: dict[str, int] = field(default_factory=dict)
    """What an answer took of each, microseconds. The engine keeps nothing and does the same for each, so what it takes
    says how fast the machine was."""

    def __str__(self) -> str:
        spent = [f"p{percent} {percentile(self.latencies, percent) * 1000:.1f} ms" for percent in (50, 99)]
        return (
            f"{len(self.latencies)} answered, {', '.join(spent)}, failed {dict(self.failed)}, "
            f"asked again {self.asked_again}, MB {self.memory}, CPU us {self.cpu}"
        )


@dataclass(slots=True)
class Soak:
    """What is asked, what came, and what it took."""

    answers: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 of each whole body, by the id of its receipt."""
    minute: Minute = field(default_factory=Minute)
    """The one that runs."""

    def hear(self, head: bytes, body: bytes) -> None:
        if _ERROR in body or (b"chunked" in head and not body.endswith(_LAST_EVENT)):
            raise GatewayFailed(body[-_ERROR_SIZE:])
        begin = head.index(_RECEIPT_ID) + len(_RECEIPT_ID)
        self.answers[head[begin : head.index(b"\r\n", begin)].decode()] = body_hash_of(body)

    def asked_again(self) -> None:
        self.minute.asked_again += 1

    async def ask(self, action: Action, due: float) -> None:
        try:
            await action()
        except (GatewayFailed, NotHeard, OSError, EOFError) as error:
            told = _ERROR_TYPE.search(str(error))
            self.minute.failed[type(error).__name__ if told is None else told[1]] += 1
        else:
            self.minute.latencies.append(time.perf_counter() - due)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.gateways.soak", description="The router at a share of its most.")
    parser.add_argument("--minutes", type=int, default=60, help="how long (default: 60)")
    parser.add_argument("--share", type=float, default=0.8, help="of the requests a second it can (default: 0.8)")
    arguments = parser.parse_args()
    console = Console(width=180, soft_wrap=True, highlight=False)
    with short_folder() as folder:
        console.print(machine.description(folder))
        with mesh_before(folder) as mesh:
            answers, minutes = asyncio.run(_run(mesh, arguments.minutes, arguments.share, console))
        hashes = leaf_hashes(mesh.state / "state" / "ledger" / "log")
        wrong = unlogged(answers, mesh.state / "state" / "router" / "receipts.sqlite", hashes)
    console.print(f"{len(answers):,} whole answers, {len(hashes):,} entries; not in the log: {len(wrong)} {wrong[:5]}")
    part = max(len(minutes) // 6, 1)
    for name, some in (("first", minutes[:part]), ("last", minutes[-part:])):
        console.print(f"the {name} {part} minutes, medians: {_medians(some)}")


async def _run(
    mesh: RunningMesh, count: int, share: float, console: Console
) -> tuple[Mapping[str, bytes], list[Minute]]:
    soak, minutes = Soak(), []
    async with AsyncExitStack() as stack:
        buffered, streamed = [
            await stack.enter_async_context(
                asking(router_of(mesh), prompt(stream=stream), soak.hear, _CONNECTIONS, soak.asked_again)
            )
            for stream in (False, True)
        ]
        actions = [streamed, *[buffered] * (_STREAMED_EVERY - 1)]
        most = await _saturate(actions)
        rate = share * most
        console.print(f"{_AT_ONCE} at once: {most:.0f}/s; so {rate:.0f}/s, one of {_STREAMED_EVERY} streamed")
        async with asyncio.TaskGroup() as asked:
            waiting: set[asyncio.Task[None]] = set()
            began, used = time.perf_counter(), _cpu(mesh)
            for number in range(int(rate * 60) * count):
                due = began + number / rate
                await asyncio.sleep(due - time.perf_counter())
                if len(waiting) >= _MOST_WAITING:
                    soak.minute.failed["not asked"] += 1
                else:
                    task = asked.create_task(soak.ask(actions[number % len(actions)], due))
                    waiting.add(task)
                    task.add_done_callback(waiting.discard)
                if (number + 1) % int(rate * 60) == 0:
                    soak.minute.memory, before, used = _memory(mesh), used, _cpu(mesh)
                    answered = max(len(soak.minute.latencies), 1)
                    soak.minute.cpu = {name: round((used[name] - before[name]) / answered) for name in used}
                    minutes.append(soak.minute)
                    console.print(f"minute {len(minutes)}: {soak.minute}")
                    soak.minute = Minute()
    return soak.answers, minutes


async def _saturate(actions: Sequence[Action]) -> float:
    """Return how many requests a second are answered with so many at once; the first third of the time warms up."""
    began = time.perf_counter()
    answered = 0
    turns = cycle(actions)

    async def work() -> None:
        nonlocal answered
        while (passed := time.perf_counter() - began) < _SATURATING_SECONDS:
            await next(turns)()
            answered += passed > _SATURATING_SECONDS / 3

    async with asyncio.TaskGroup() as workers:
        for _ in range(_AT_ONCE):
            workers.create_task(work())
    return answered / (_SATURATING_SECONDS * 2 / 3)


def _medians(minutes: Sequence[Minute]) -> str:
    latencies = [
        f"p{percent} {statistics.median(percentile(each.latencies, percent) for each in minutes) * 1000:.1f} ms"
        for percent in (50, 99)
    ]
    memory = {name: round(statistics.median(each.memory[name] for each in minutes)) for name in minutes[0].memory}
    cpu = {name: round(statistics.median(each.cpu[name] for each in minutes)) for name in minutes[0].cpu}
    return f"{', '.join(latencies)}, MB {memory}, CPU us {cpu}"


def _memory(mesh: RunningMesh) -> dict[str, int]:
    """Return what each service takes with the processes that it started, MB."""
    pids = {name: int(each["pid"]) for name, each in mesh.mesh["services"].items()}
    return {name: sum(map(resident_megabytes, {pid, *descendants(pid)})) for name, pid in pids.items()}


def _cpu(mesh: RunningMesh) -> dict[str, int]:
    """Return what the services that an answer goes through have used, and the engine, microseconds each."""
    pids = {name: int(mesh.mesh["services"][name]["pid"]) for name in _ON_THE_WAY}
    pids["engine"] = min(descendants(pids["node"]))
    return {name: round(cpu_seconds(pid) * 1_000_000) for name, pid in pids.items()}


if __name__ == "__main__":
    main()
