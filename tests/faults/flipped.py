"""A ledger's start on a log in which one byte is another, many times: each start a process of its own.

What a start imports is imported once, by the server that the processes are forked from.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

from services.ledger.storage.segment_files import SEGMENTS

_START_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Refused:
    """How a start ended. `line`: its last words."""

    at: int
    status: int | None
    line: str


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def start_on_flipped(state: Path, segment: str, offsets: Iterable[int]) -> Iterator[Refused]:
    """Start the ledger of a mesh's folder on copies of its log, in each of which the byte at one offset is another."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["services.ledger.__main__"])
    with ThreadPoolExecutor(2) as two:
        yield from two.map(lambda at: _start(context, state, segment, at), offsets)


def _start(context: ForkServerContext, state: Path, segment: str, at: int) -> Refused:
    log, copy = state / "state" / "ledger" / "log", state / f"flipped-{at}"
    shutil.copytree(log, copy)
    path = copy / SEGMENTS / segment
    path.write_bytes(flipped(path.read_bytes(), at))
    config, words = copy / "ledger.toml", copy / "words"
    config.write_text((state / "config" / "ledger.toml").read_text().replace(str(log), str(copy)))
    process = context.Process(target=_serve, args=(config, words))
    try:
        process.start()
        process.join(_START_SECONDS)
        return Refused(at, process.exitcode, words.read_text().strip().rpartition("\n")[2])
    finally:
        process.kill()
        process.join()
        shutil.rmtree(copy)


def _serve(config: Path, words: Path) -> None:
    """Be `python -m services.ledger`, with its standard error in a file."""
    with words.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = ["services.ledger", str(config)]
    runpy.run_module("services.ledger", run_name="__main__")
