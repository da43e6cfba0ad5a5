"""It is responsible for when JSON is read that takes long: beside the event loop, one text at a time, tenants in turn.

Values take up to a hundred times the memory of their text, and a sealed field takes a key agreement. So there are four
lines, each with one thread: requests, encrypted ones that take little, answers, and what of answers takes little.
Whoever waits in one waits behind one text of every other tenant, not behind all that a tenant sent, and no longer than
its own request's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, TypeVar

from libs.aci.json_values import FEW_VALUES, MOST_VALUES
from libs.turns.line import Line, freeing
from services.router.errors import BodiesBusy, UpstreamFailed

T = TypeVar("T")

LITTLE = 4 * FEW_VALUES
"""What takes no more than so many values do, some ten milliseconds, does not wait for what does."""
_MOST_OF_ONE_TENANT = 4 * MOST_VALUES


class Reading:
    """Reads in turn. What `work` makes of a text's values MUST be small: they are gone when it returns."""

    def __init__(self) -> None:
        self._requests = Line("request-reading")
        self._little = Line("request-opening")
        self._answers = Line("answer-reading")
        self._little_answers = Line("answer-passing")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for line in (self._requests, self._little, self._answers, self._little_answers):
            line.close()

    async def request(self, tenant_id: str, values: int, seconds: float, work: Callable[[], T]) -> T:
        """Return what `work` does with so many values: at once where they are few, else in turn, for which it waits so
        many seconds. Raises `BodiesBusy`, and what `work` raises.
        """
        if values <= FEW_VALUES:
            return freeing(work)
        return await self._in_turn(self._requests, tenant_id, _counted(values), seconds, work)

    async def opening(self, tenant_id: str, values: int, agreed: int, seconds: float, work: Callable[[], T]) -> T:
        """The same for an encrypted request, never at once. Its key agreements take as long as so many values."""
        counted = _counted(values) + agreed
        line = self._little if counted <= LITTLE else self._requests
        return await self._in_turn(line, tenant_id, counted, seconds, work)

    async def answer(self, tenant_id: str, values: int, seconds: float, work: Callable[[], T]) -> T:
        """The same for an answer. It was paid for, so as many may wait as there are. Raises `UpstreamFailed` where its
        time is over first.
        """
        if values <= FEW_VALUES:
            return freeing(work)
        line = self._little_answers if values <= LITTLE else self._answers
        try:
            return await line.read(tenant_id, seconds, work)
        except TimeoutError as error:
            raise UpstreamFailed("the request's time was over before its answer could be read", late=True) from error

    async def _in_turn(self, line: Line, tenant_id: str, counted: int, seconds: float, work: Callable[[], T]) -> T:
        if line.waiting[tenant_id] + counted > _MOST_OF_ONE_TENANT:
            raise BodiesBusy("too many large request bodies of this tenant at once; try again")
        line.waiting[tenant_id] += counted
        try:
            return await line.read(tenant_id, seconds, work)
        except TimeoutError as error:
            raise BodiesBusy("the request's time is over before its body could be read; try again") from error
        finally:
            line.waiting[tenant_id] -= counted
            if not line.waiting[tenant_id]:
                del line.waiting[tenant_id]


def _counted(values: int) -> int:
    return min(values, MOST_VALUES)  # What has more is refused at little more cost.
