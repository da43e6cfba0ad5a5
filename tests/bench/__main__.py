"""Runs the benchmarks: `python -m tests.bench`. Some seven minutes; run them on an otherwise idle machine."""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from pathlib import Path

import structlog
from rich.console import Console

from tests.bench import (
    appraisal,
    calls,
    chat,
    client,
    kms,
    ledger,
    ledger_intake,
    ledger_log,
    machine,
    node,
    registry,
    revocation,
    weights,
)
from tests.bench.report import Section, console_for_tables, show
from tests.mesh.running import RunningMesh, running_mesh, short_folder

_SECTIONS = (
    "chat",
    "ledger",
    "ledger_intake",
    "ledger_log",
    "calls",
    "appraisal",
    "client",
    "kms",
    "node",
    "registry",
    "revocation",
    "weights",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.bench", description="Measure what the mesh adds, side by side.")
    parser.add_argument("--only", choices=_SECTIONS, action="append", help="one section; may be given again")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most so long for each pair (default: 10)")
    parser.add_argument("--entries", type=int, default=1_000_000, help="of the long log (default: 1,000,000)")
    parser.add_argument("--vllm", type=Path, metavar="VENV", help="the mesh's engine is vLLM (see make run-vllm)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    console = console_for_tables()
    options = () if arguments.vllm is None else node.vllm_options(arguments.vllm)
    with short_folder() as folder, running_mesh(folder, *options) as mesh:
        asyncio.run(_run(mesh, folder, arguments, console))


async def _run(mesh: RunningMesh, folder: Path, arguments: argparse.Namespace, console: Console) -> None:
    console.print(machine.description(folder), highlight=False, soft_wrap=True)
    began = time.monotonic()
    for name in arguments.only or _SECTIONS:
        own = folder / name
        own.mkdir()
        show(await _measure(name, mesh, own, arguments.seconds, arguments.entries), console)
    console.print(f"took {time.monotonic() - began:.0f} s, load at the end {machine.load()}", highlight=False)


async def _measure(name: str, mesh: RunningMesh, folder: Path, seconds: float, entries: int) -> Section:
    match name:
        case "chat":
            return await chat.measure(mesh, folder, seconds=seconds)
        case "ledger":
            return await ledger.measure(mesh, folder, seconds=seconds / 2)
        case "ledger_intake":
            return await ledger_intake.measure(mesh, folder, seconds=seconds / 2)
        case "ledger_log":
            return await ledger_log.measure(folder, entries)
        case "calls":
            return await calls.measure(folder)
        case "appraisal":
            return await appraisal.measure(folder, seconds=seconds / 2)
        case "client":
            return await client.measure(mesh, seconds=seconds * 2)
        case "kms":
            return await kms.measure(folder)
        case "node":
            return await node.measure(mesh, folder)
        case "registry":
            return await registry.measure(folder)
        case "weights":
            return await weights.measure(folder, seconds=seconds * 4)
        case _:
            return await revocation.measure(mesh, folder)


if __name__ == "__main__":
    main()
