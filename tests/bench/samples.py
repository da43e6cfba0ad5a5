"""Responsible for taking samples of two things in turns, so that what the machine does meanwhile falls on both."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

Action = Callable[[], Awaitable[float | None]]
"""Does the thing once; returns the seconds until its first byte, where it has one before its end."""


@dataclass(frozen=True, slots=True)
class Samples:
    """How long one thing took, each time. All in seconds."""

    whole: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    """To the first byte."""
    elapsed: float = 0.0
    """From the first start to the last end, the other thing's turns left out."""

    @property
    def rate(self) -> float:
        """How many ended in a second."""
        return len(self.whole) / self.elapsed

    @property
    def p50(self) -> float:
        return percentile(self.whole, 50)

    @property
    def p99(self) -> float:
        return percentile(self.whole, 99)


@dataclass(frozen=True, slots=True)
class Limit:
    """When to stop: whichever comes first. `count` is of samples of each thing."""

    count: int
    seconds: float
    in_a_row: int = 4
    """How many of one thing each worker takes before it is the other's turn."""


def percentile(seconds: Sequence[float], percent: float) -> float:
    """The smallest sample that `percent` of all do not exceed: with fewer than 100, the 99th is the largest."""
    ranked = sorted(seconds)
    return ranked[max(math.ceil(len(ranked) * percent / 100), 1) - 1]


async def side_by_side(actions: Sequence[Action], limit: Limit, *, concurrency: int = 1) -> list[Samples]:
    """Return one `Samples` for each action. Each is done once before, unmeasured; their order turns every round."""
    taken = [Samples() for _ in actions]
    elapsed = [0.0 for _ in actions]
    for action in actions:
        await _round(action, Samples(), 1, concurrency)
    deadline = time.monotonic() + limit.seconds
    order = list(range(len(actions)))
    while time.monotonic() < deadline and min(len(samples.whole) for samples in taken) < limit.count:
        for which in order:
            elapsed[which] += await _round(actions[which], taken[which], limit.in_a_row, concurrency)
        order.reverse()
    return [Samples(samples.whole, samples.first, spent) for samples, spent in zip(taken, elapsed, strict=True)]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two things measured right after one another, again and again."""

    base: Samples
    ours: Samples
    ratios: list[float]
    """Throughput of ours to the base's, one for each pair."""

    @property
    def median_ratio(self) -> float:
        return statistics.median(self.ratios)


async def in_pairs(base: Action, ours: Action, *, pairs: int, in_a_row: int, concurrency: int = 1) -> Pairs:
    """Measure so many pairs, `in_a_row` of each thing for each worker; every other pair begins with ours."""
    taken = Samples(), Samples()
    elapsed = [0.0, 0.0]
    ratios = []
    for action in (base, ours):
        await _round(action, Samples(), in_a_row, concurrency)
    for number in range(pairs):
        spent = [0.0, 0.0]
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            spent[which] = await _round((base, ours)[which], taken[which], in_a_row, concurrency)
            elapsed[which] += spent[which]
        ratios.append(spent[0] / spent[1])
    of_base, of_ours = (Samples(one.whole, one.first, all_of) for one, all_of in zip(taken, elapsed, strict=True))
    return Pairs(of_base, of_ours, ratios)


async def _round(action: Action, samples: Samples, in_a_row: int, concurrency: int) -> float:
    async def work() -> None:
        for _ in range(in_a_row):
            started = time.perf_counter()
            first = await action()
            samples.whole.append(time.perf_counter() - started)
            if first is not None:
                samples.first.append(first)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as workers:
        for _ in range(concurrency):
            workers.create_task(work())
    return time.perf_counter() - began
