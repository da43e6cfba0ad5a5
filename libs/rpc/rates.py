"""It is responsible for how often one address may call a listener that asks nobody who they are."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from libs.errors import Code, MeshError

_REMEMBERED = 4096
# Seconds' worth of calls that may come at once: a mesh that starts asks for everything in the same second.
_BURST_SECONDS = 4.0


class RateLimited(MeshError):
    """This address calls too often."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"


class Rates:
    """A token bucket per address; the addresses heard least recently are forgotten first."""

    def __init__(self, calls_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = calls_per_second
        self._most = max(1.0, calls_per_second * _BURST_SECONDS)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, peer: str) -> None:
        """Count one call of `peer` (as gRPC writes it, "ipv4:127.0.0.1:5000"). Raises `RateLimited`."""
        address = peer.rpartition(":")[0]
        now = self._clock()
        left, since = self._left.pop(address, (self._most, now))
        left = min(self._most, left + (now - since) * self._per_second)
        allowed = left >= 1
        self._left[address] = (left - 1 if allowed else left, now)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        if not allowed:
            raise RateLimited("too many calls from this address; try again later")
