"""It is responsible for how often somebody may do something: an allowance each, which time refills."""

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


class Allowances:
    """A token bucket per name; the names heard least recently are forgotten first."""

    def __init__(self, per_second: float, most: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`most` may come at once."""
        self._per_second = per_second
        self._most = most
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> bool:
        """Count one of `name`, if its allowance has one left; say whether it had."""
        now = self._clock()
        left, since = self._left.pop(name, (self._most, now))
        left = min(self._most, left + (now - since) * self._per_second)
        allowed = left >= 1
        self._left[name] = (left - 1 if allowed else left, now)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        return allowed


class Rates:
    """How often one address may call a listener that asks nobody who they are."""

    def __init__(self, calls_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowances = Allowances(calls_per_second, max(1.0, calls_per_second * _BURST_SECONDS), clock)

    def spend(self, peer: str) -> None:
        """Count one call of `peer` (as gRPC writes it, "ipv4:127.0.0.1:5000"). Raises `RateLimited`."""
        if not self._allowances.take(peer.rpartition(":")[0]):
            raise RateLimited("too many calls from this address; try again later")
