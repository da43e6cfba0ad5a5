"""Responsible for what an operator watches: counts and durations, in Prometheus' text form.

They name endpoints, statuses and reasons, all of them few; never a tenant, a model's words or anything a client chose.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_STATUSES = range(100, 600)
_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the classes of durations, seconds."""


@dataclass(slots=True)
class Count:
    """A number per label value, which only grows unless it is said to shrink; without a label, one that may do both."""

    name: str
    meaning: str
    label: str | None = None
    shrinks: bool = False
    """Whether the numbers of a label's values may shrink."""
    numbers: Counter[str] = field(default_factory=Counter)

    def add(self, value: str = "", amount: int = 1) -> None:
        self.numbers[value] += amount

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.meaning, "gauge" if self.label is None or self.shrinks else "counter")
        if self.label is None:
            yield f"{self.name} {self.numbers['']}"
            return
        for value, number in sorted(self.numbers.items()):
            yield f'{self.name}{{{self.label}="{value}"}} {number}'


@dataclass(slots=True)
class Durations:
    """How long something took, by classes."""

    name: str
    meaning: str
    classes: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.classes[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.meaning, "histogram")
        upto = 0
        for bound, number in zip((*map(str, _BOUNDS), "+Inf"), self.classes, strict=True):
            upto += number
            yield f'{self.name}_bucket{{le="{bound}"}} {upto}'
        yield f"{self.name}_sum {self.total:.6f}"
        yield f"{self.name}_count {upto}"


class RoutingMetrics:
    """What is counted of nodes and of who waits for them; no node has a line of its own."""

    def __init__(self) -> None:
        self.breakers = Count(
            "teemesh_router_breakers_open", "Nodes that are avoided now, by cause.", "cause", shrinks=True
        )
        self.waiting = Count("teemesh_router_waiting", "Prompts that wait for a node now.")
        self.turned_away = Count(
            "teemesh_router_turned_away_total", "Prompts that found no room, or not in time, by reason.", "reason"
        )
        self.waited_seconds = Durations("teemesh_router_waited_seconds", "For a node, of prompts that had to.")

    def lines(self) -> Iterator[str]:
        for each in (self.breakers, self.waiting, self.turned_away, self.waited_seconds):
            yield from each.lines()


class ConnectionMetrics:
    """What is counted of connections."""

    def __init__(self) -> None:
        self.open = Count("teemesh_router_connections", "Connections of HTTP clients that are open now.")
        self.turned_away = Count(
            "teemesh_router_connections_turned_away_total", "Connections that were not let in, by reason.", "reason"
        )

    def lines(self) -> Iterator[str]:
        for each in (self.open, self.turned_away):
            yield from each.lines()


class Metrics:
    """What one router counts."""

    def __init__(self, keyset_ends: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        """`keyset_ends` says when the keyset of now does, Unix seconds."""
        self._keyset_ends = keyset_ends
        self._clock = clock
        self.running = Count("teemesh_router_exchanges_running", "Prompts that are being answered now.")
        self.exchanges = Count("teemesh_router_exchanges_total", "Prompts of tenants, by endpoint.", "endpoint")
        self.responses = Count("teemesh_router_responses_total", "Answers to prompts, by status.", "status")
        self.ends = Count("teemesh_router_ends_total", "Answers that ended before their time, by reason.", "reason")
        self.refusals = Count("teemesh_router_refusals_total", "Requests that were refused, by reason.", "reason")
        self.replies = Count("teemesh_router_http_replies_total", "All HTTP replies, by status.", "status")
        self.keyset_renewals = Count(
            "teemesh_router_keyset_renewals_total", "Tries to renew the keyset, by what came of them.", "outcome"
        )
        self.let_go = Count(
            "teemesh_router_receipts_let_go_total", "Receipts that are handed out no more, by reason.", "reason"
        )
        self.head_seconds = Durations("teemesh_router_head_seconds", "From a prompt to the head of its answer.")
        self.exchange_seconds = Durations("teemesh_router_exchange_seconds", "From a prompt to the end of its answer.")
        self.commit_seconds = Durations("teemesh_router_commit_seconds", "For a receipt to be logged and kept.")
        self.routing = RoutingMetrics()
        self.connections = ConnectionMetrics()

    @contextmanager
    def exchange(self, endpoint: str) -> Iterator[Callable[[int], None]]:
        """Count an exchange and take its time. Yields what is told the status once the head goes out."""
        began = self._clock()

        def head(status: int) -> None:
            # A node may make up any number, and each would be a line for ever.
            self.responses.add(str(status) if status in _STATUSES else "other")
            self.head_seconds.observe(self._clock() - began)

        self.exchanges.add(endpoint)
        self.running.add()
        try:
            yield head
        finally:
            self.running.add(amount=-1)
            self.exchange_seconds.observe(self._clock() - began)

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Take the time of a receipt's way into the log, also where it does not get there."""
        began = self._clock()
        try:
            yield
        finally:
            self.commit_seconds.observe(self._clock() - began)

    def text(self) -> str:
        """Return all of it as Prometheus reads it."""
        lines: list[str] = []
        for each in (
            self.running,
            self.exchanges,
            self.responses,
            self.ends,
            self.refusals,
            self.replies,
            self.keyset_renewals,
            self.let_go,
        ):
            lines.extend(each.lines())
        ends = Count("teemesh_router_keyset_not_after_seconds", "When the keyset of now ends, Unix time.")
        ends.add(amount=self._keyset_ends())
        lines.extend(ends.lines())
        for taken in (self.head_seconds, self.exchange_seconds, self.commit_seconds):
            lines.extend(taken.lines())
        lines.extend(self.routing.lines())
        lines.extend(self.connections.lines())
        return "\n".join((*lines, ""))


def _head(name: str, meaning: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
