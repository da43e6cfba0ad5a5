"""A process without threads for what forks thousands of others."""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.faults.ledger.outcome import Batch, Outcome

Trial = Callable[[Batch], Outcome]


class Apart:
    """Runs trials in a process of its own, one at a time. Open with `trying_apart`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    async def run(self, trial: Trial, batch: Batch) -> Outcome:
        return await asyncio.get_running_loop().run_in_executor(self._pool, trial, batch)


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where the machine has such a file system: it is the process that is tried, not the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fault", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@contextmanager
def trying_apart() -> Iterator[Apart]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield Apart(pool)
