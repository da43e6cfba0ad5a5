"""Runs the gateways beside each other: `make bench-gateways`. Some five minutes, on an otherwise idle machine."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.bench import machine
from tests.bench.gateways.engine import WORDS
from tests.bench.gateways.load import Gateway, asking, prompt
from tests.bench.gateways.mesh import mesh_before, router_of
from tests.bench.gateways.rivals import engine, rivals, running
from tests.bench.processes import resident_megabytes
from tests.bench.report import Row, Section, console_for_tables, show
from tests.bench.samples import Action, Limit, Samples, in_pairs, percentile, side_by_side
from tests.mesh.running import RunningMesh, short_folder

_PAIRS = 10
_AT_ONCE = 16
_SYNCS = 200
_PAUSE_SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.gateways", description="The router beside other gateways.")
    parser.add_argument("--rivals", type=Path, metavar="VENV", help="where they are installed; without it, none")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most so long for each latency (default: 10)")
    parser.add_argument("--streams", type=int, default=1000, help="slow streams at once (default: 1,000)")
    parser.add_argument("--requests", type=int, default=10_000, help="to see memory grow (default: 10,000)")
    arguments = parser.parse_args()
    console = console_for_tables()
    began = time.monotonic()
    with short_folder() as folder:
        console.print(machine.description(folder), highlight=False, soft_wrap=True)
        quick, slow = folder / "q", folder / "w"
        with mesh_before(quick) as mesh:
            for section in asyncio.run(_quick(mesh, quick, arguments)):
                show(section, console)
        with mesh_before(slow, pause=_PAUSE_SECONDS) as mesh:
            console.print(asyncio.run(_streams(mesh, arguments.streams)), highlight=False, soft_wrap=True)
    console.print(f"took {time.monotonic() - began:.0f} s, load at the end {machine.load()}", highlight=False)


async def _quick(mesh: RunningMesh, folder: Path, arguments: argparse.Namespace) -> list[Section]:
    async with engine(folder) as engine_url:
        bare = Gateway("engine alone", engine_url)
        sections = [await _latency(bare, router_of(mesh), folder, arguments.seconds)]
        others: list[Row] = []
        async with AsyncExitStack() as stack:
            started = [bare]
            if arguments.rivals is not None:
                for rival in rivals(arguments.rivals.absolute(), engine_url, folder):
                    started.append(await stack.enter_async_context(running(rival)))
            for gateway in started:
                others.append(await _throughput(gateway, router_of(mesh)))
        notes = [await _growth(mesh, arguments.requests)]
        sections.append(Section(f"{_AT_ONCE} at once", "named in the row", "through the router", others, notes))
    return sections


async def _latency(bare: Gateway, router: Gateway, folder: Path, seconds: float) -> Section:
    rows = []
    for stream in (False, True):
        for at_once in (1, _AT_ONCE):
            async with _both(bare, router, prompt(stream=stream)) as (base, ours):
                taken = await side_by_side((base, ours), Limit(4_000, seconds, 20), concurrency=at_once)
            rows.append(Row(f"{'streamed' if stream else 'buffered'}, {at_once} at once", *taken))
    sync = await asyncio.to_thread(_syncs, folder)
    streamed, whole = rows[2], rows[0]
    chunks = ((streamed.ours.p50 - streamed.base.p50) - (whole.ours.p50 - whole.base.p50)) / (len(WORDS) + 3)
    notes = [
        f"fdatasync of 4 KiB here: p50 {percentile(sync, 50) * 1000:.2f} ms, p99 {percentile(sync, 99) * 1000:.2f} ms; "
        "four follow each other on the way (outbox, broker, ledger, receipt store)",
        f"added to the first byte, streamed, one at once: {_added_first(streamed):.2f} ms; "
        f"for each chunk {chunks * 1000:.3f} ms more than for the whole",
    ]
    return Section("latency", "engine asked directly", "through the router", rows, notes)


async def _throughput(other: Gateway, router: Gateway) -> Row:
    """Ten pairs, each as long as the slower of the two needs for some hundred requests."""
    async with _both(other, router, prompt(stream=False)) as (base, ours):
        pairs = await in_pairs(base, ours, pairs=_PAIRS, in_a_row=20, concurrency=_AT_ONCE)
    return Row(f"{other.name} (median ratio {pairs.median_ratio:.2f}x)", pairs.base, pairs.ours)


async def _growth(mesh: RunningMesh, requests: int) -> str:
    async with asking(router_of(mesh), prompt(stream=False)) as ask:
        await _ask(ask, 500)
        before, began = _rss(mesh), time.perf_counter()
        await _ask(ask, requests)
    after, took = _rss(mesh), time.perf_counter() - began
    return f"router's memory over {requests:,} requests: {before} MB to {after} MB; {requests / took:,.0f}/s"


async def _ask(ask: Action, requests: int) -> None:
    async def work() -> None:
        for _ in range(requests // _AT_ONCE):
            await ask()

    async with asyncio.TaskGroup() as workers:
        for _ in range(_AT_ONCE):
            workers.create_task(work())


async def _streams(mesh: RunningMesh, streams: int) -> str:
    before = _rss(mesh)
    most = before
    async with asking(router_of(mesh), prompt(stream=True)) as ask:
        samples = Samples()

        async def one() -> None:
            began = time.perf_counter()
            await ask()
            samples.whole.append(time.perf_counter() - began)

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one()) for _ in range(streams)]
            while not all(task.done() for task in running):
                most = max(most, _rss(mesh))
                await asyncio.sleep(0.2)
    return (
        f"{streams:,} slow streams at once: the router's memory {before} MB before, {most} MB at most; each took "
        f"{samples.p50:.1f} s (p50), {samples.p99:.1f} s (p99), of which the engine pauses "
        f"{(len(WORDS) + 3) * _PAUSE_SECONDS:.0f} s"
    )


@asynccontextmanager
async def _both(base: Gateway, ours: Gateway, body: bytes) -> AsyncIterator[Sequence[Action]]:
    async with asking(base, body) as first, asking(ours, body) as second:
        yield first, second


def _syncs(folder: Path) -> list[float]:
    """Return how long it takes to append 4 KiB and sync them, each time."""
    taken = []
    with (folder / "synced").open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    return taken


def _added_first(row: Row) -> float:
    return (percentile(row.ours.first, 50) - percentile(row.base.first, 50)) * 1000


def _rss(mesh: RunningMesh) -> int:
    """Return the router's resident memory, MB."""
    return resident_megabytes(mesh.mesh["services"]["router"]["pid"])


if __name__ == "__main__":
    main()
