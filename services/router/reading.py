"""It is responsible for when JSON is read whose values are many: one text at a time, beside the event loop.

Values take up to a hundred times the memory of their text. So they are in memory for one request and one answer at a
time, whatever waits, and nobody else waits while they are made.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

from libs.aci.json_values import FEW_VALUES, MOST_VALUES
from libs.errors import MeshError
from services.router.errors import BodiesBusy

T = TypeVar("T")

_MOST_OF_ONE_TENANT = 4 * MOST_VALUES
_MOST_WAITING = 16 * MOST_VALUES


class Reading:
    """Reads in turn. What `work` makes of a text's values MUST be small: they are gone when it returns."""

    def __init__(self) -> None:
        self._requests = ThreadPoolExecutor(1, "request-reading")
        self._answers = ThreadPoolExecutor(1, "answer-reading")
        self._waiting: Counter[str] = Counter()
        """How many values of each tenant's requests are read or wait to be."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for thread in (self._requests, self._answers):
            thread.shutdown(wait=False, cancel_futures=True)

    async def request(self, tenant_id: str, values: int, work: Callable[[], T]) -> T:
        """Return what `work` does, at once where the values are few. Raises `BodiesBusy`, and what it raises."""
        return freeing(work) if values <= FEW_VALUES else await self.in_turn(tenant_id, values, work)

    async def in_turn(self, tenant_id: str, values: int, work: Callable[[], T]) -> T:
        """Return what `work` does, after what waits already. Raises `BodiesBusy` where that is too much, of this tenant
        or of all.
        """
        counted = min(values, MOST_VALUES)  # What has more is refused at little more cost.
        if self._waiting[tenant_id] + counted > _MOST_OF_ONE_TENANT:
            raise BodiesBusy("too many large request bodies of this tenant at once; try again")
        if self._waiting.total() + counted > _MOST_WAITING:
            raise BodiesBusy("too many large request bodies at once; try again")
        self._waiting[tenant_id] += counted
        try:
            return await asyncio.get_running_loop().run_in_executor(self._requests, freeing, work)
        finally:
            self._waiting[tenant_id] -= counted
            if not self._waiting[tenant_id]:
                del self._waiting[tenant_id]

    async def answer(self, values: int, work: Callable[[], T]) -> T:
        """Return what `work` does for an answer: it was paid for, so it waits for as long as that takes."""
        if values <= FEW_VALUES:
            return freeing(work)
        return await asyncio.get_running_loop().run_in_executor(self._answers, freeing, work)


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
