"""It is responsible for work that holds up the event loop: done beside it, one piece at a time, tenants in turn."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from libs.errors import MeshError
from libs.turns import Turns

T = TypeVar("T")


class Line:
    """One thread, for which tenants take turns."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._turns = Turns(1)
        self.waiting: Counter[str] = Counter()
        """How many values of each tenant's are read or wait to be, where that is bounded."""

    async def read(self, tenant_id: str, seconds: float, work: Callable[[], T]) -> T:
        """Return what `work` does in its turn. Raises `TimeoutError` where that does not come in time, and what `work`
        raises.
        """
        async with self._turns.taken(tenant_id, seconds):
            # Of one that leaves meanwhile the thread goes on: whoever is next waits for it, too.
            return await asyncio.get_running_loop().run_in_executor(self._thread, freeing, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def freeing(work: Callable[[], T]) -> T:
    """Return what `work` does. What it raises keeps no value alive: a refusal lives until its receipt is logged."""
    try:
        return work()
    except MeshError as error:
        _free(error)
        raise


def _free(error: BaseException | None) -> None:
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
