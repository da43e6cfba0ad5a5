"""It is responsible for the ledger's child processes: started with pipes, tied to this process, and stopped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from libs.process import tethered

_LINE_BYTES = 1 << 20
_STOP_SECONDS = 5.0
_SOURCE_ROOT = Path(__file__).parents[2]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Child:
    """A running child and the pipes to it."""

    process: asyncio.subprocess.Process
    requests: asyncio.StreamWriter
    answers: asyncio.StreamReader


@asynccontextmanager
async def open_child(module: str, *arguments: str) -> AsyncIterator[Child]:
    """Run `module` while the body runs. It ends with this process, however that ends."""
    process = await asyncio.create_subprocess_exec(
        *tethered([sys.executable, "-m", module, *arguments]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=_SOURCE_ROOT,
        limit=_LINE_BYTES,
        process_group=0,  # A Ctrl-C at the terminal is for the ledger, which then ends this one.
    )
    try:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError(f"{module} was started without pipes")
        yield Child(process, process.stdin, process.stdout)
    finally:
        await _stop(process, module)


async def _stop(process: asyncio.subprocess.Process, module: str) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        log.warning("a child does not end by itself", module=module)
        process.kill()
        await process.wait()
