"""It is responsible for refusals on record: each once a minute at once, what repeats it as a number afterwards.

Whoever may ask may ask in a loop, and the log forgets nothing. So how much the log gets of a caller depends on the
clock and not on the caller, and so does the memory that this takes. Callers and what they are refused beyond the bounds
are counted together. A KMS that is killed loses the numbers of the running minute; of each refusal that was recorded,
that it happened stays. One that ends in order loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import structlog

from libs.events.outbox import OutboxFull

OTHERS = "*"
"""Stands for any caller, or any name and reason, beyond the bounds: no SPIFFE ID, key name or reason is that."""

MAX_CALLERS = 256
MAX_OF_A_CALLER = 8
"""Different names and reasons of one caller in one minute."""

_COUNT_VERSION = 1
_MINUTE_SECONDS = 60.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Repeated:
    """What is counted together."""

    caller: str
    name: str
    reason: str


@dataclass(slots=True)
class _Tally:
    since_ms: int
    passed_over: int = 0


class Refusals:
    """Takes every refusal, and writes as many as the log is to have."""

    def __init__(
        self, record: Callable[[Mapping[str, Any]], Awaitable[None]], clock: Callable[[], float] = time.time
    ) -> None:
        """`record` makes a key decision durable; it raises `OutboxFull`."""
        self._record = record
        self._clock = clock
        self._tallies: dict[str, dict[_Repeated, _Tally]] = {}

    async def record(self, refusal: Mapping[str, Any]) -> None:
        """Record the body of a refusal, or count it. What finds the outbox full is counted, and refused all the same.

        It has `name`, `spiffe_id` and `reason`.
        """
        repeated = self._place(refusal["spiffe_id"], refusal["name"], refusal["reason"])
        of_caller = self._tallies.setdefault(repeated.caller, {})
        if (tally := of_caller.get(repeated)) is not None:
            tally.passed_over += 1
            return
        tally = of_caller[repeated] = _Tally(self._now_ms())
        try:
            await self._record(refusal)
        except OutboxFull as error:
            log.warning("a refusal is not on record yet", reason=error.reason)
            tally.passed_over += 1

    async def end_minute(self) -> None:
        """Record how often each refusal was repeated; the next of each is recorded at once again."""
        ended = [(repeated, tally) for of_caller in self._tallies.values() for repeated, tally in of_caller.items()]
        await asyncio.gather(*(self._end(repeated, tally) for repeated, tally in ended))

    async def keep(self) -> NoReturn:
        """End the minutes, for ever."""
        while True:
            await asyncio.sleep(_MINUTE_SECONDS)
            await self.end_minute()

    async def _end(self, repeated: _Repeated, tally: _Tally) -> None:
        counted, since_ms = tally.passed_over, tally.since_ms
        if counted:
            tally.passed_over, tally.since_ms = 0, self._now_ms()
            try:
                await self._record(_count(repeated, counted, since_ms))
            except OutboxFull:
                tally.passed_over, tally.since_ms = tally.passed_over + counted, since_ms
        # What came meanwhile, or found the outbox full, is counted on.
        if not tally.passed_over:
            self._forget(repeated)

    def _place(self, caller: str, name: str, reason: str) -> _Repeated:
        """Return what to count a refusal as, within the bounds."""
        if caller not in self._tallies and len(self._tallies) >= MAX_CALLERS:
            caller = OTHERS
        of_caller = self._tallies.get(caller, {})
        repeated = _Repeated(caller, name, reason)
        return repeated if repeated in of_caller or len(of_caller) < MAX_OF_A_CALLER else _others_of(caller)

    def _forget(self, repeated: _Repeated) -> None:
        of_caller = self._tallies[repeated.caller]
        del of_caller[repeated]
        if not of_caller:
            del self._tallies[repeated.caller]

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _others_of(caller: str) -> _Repeated:
    return _Repeated(caller, OTHERS, OTHERS)


def _count(repeated: _Repeated, counted: int, since_ms: int) -> Mapping[str, Any]:
    """Return the body of the ledger entry about what was passed over."""
    return {
        "decision": "refused",
        "name": repeated.name,
        "spiffe_id": repeated.caller,
        "reason": repeated.reason,
        "passed_over": {"v": _COUNT_VERSION, "count": counted, "since_ms": since_ms},
    }


@asynccontextmanager
async def keeping(refusals: Refusals) -> AsyncIterator[None]:
    """Have the minutes end while the body runs; after it, in order, the one that is running."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(refusals.keep())
        try:
            yield
        finally:
            task.cancel()
    # Reached in order only: where the body failed, there may be no outbox any more that would ever take it.
    await refusals.end_minute()
