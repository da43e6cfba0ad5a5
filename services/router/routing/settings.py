"""Responsible for what an operator decides about which node gets a request, and what happens when none has room."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """The TOML table [routing]. Each router has what follows from it for itself; none of it widens who may serve."""

    breaker_failures: int = 5
    """After how many failures in a row, or slow first bytes in a row, a node is avoided."""
    breaker_seconds: float = 15.0
    """For how long, until one request tries it again, seconds."""
    slow_seconds: float = 2.0
    """A stream's first byte that comes sooner is never slow, seconds."""
    slow_factor: float = 4.0
    """How many times the other nodes' usual time to the first byte is slow."""
    queue_factor: float = 1.0
    """How many requests a node is given at most, as a multiple of its capacity. Beyond that, requests wait."""
    queue_length: int = 256
    """How many requests may wait for each model."""
    queue_seconds: float = 20.0
    """How long one may wait, seconds."""
    affinity_slack: float = 0.2
    """How much busier than the least busy a node may be, relative to its capacity, to be given what begins as earlier
    prompts did. 0: only while it is one of the least busy.
    """
    first_byte_seconds: float = 60.0
    """How long a node may take to begin a stream, seconds. Buffered answers have all of the request's time."""
    idle_seconds: float = 60.0
    """How long a node that has begun may then be silent, seconds."""

    def __post_init__(self) -> None:
        if self.breaker_failures < 1 or self.queue_length < 0:
            raise ValueError("breaker_failures must be at least 1, queue_length at least 0")
        if not self.slow_factor >= 1.0:
            raise ValueError("slow_factor must be at least 1")
        if not (self.queue_factor > 0.0 and self.affinity_slack >= 0.0):
            raise ValueError("queue_factor must be over 0, affinity_slack at least 0")
        positive = (self.breaker_seconds, self.queue_seconds, self.first_byte_seconds, self.idle_seconds)
        if not (all(seconds > 0.0 for seconds in positive) and self.slow_seconds >= 0.0):
            raise ValueError("times must be over 0 seconds")
