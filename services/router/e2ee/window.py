"""Responsible for taking each encrypted request once (e2ee-v2 §7): its time is near, and it did not come before.

A request is remembered until its own time is too old, so one that is dated ahead is remembered for longer. Time here
never goes back, as the host's clock may: what was forgotten would be new again. After a restart the keys are others.
"""

from __future__ import annotations

import hashlib
import heapq
import threading
import time
from collections import Counter
from collections.abc import Callable

from services.router.e2ee.errors import Replayed, TimestampRefused, TooManyRemembered

WINDOW_SECONDS = 300
MOST_REMEMBERED = 500_000
"""Some 100 MB; over 800 requests a second, all the time."""
MOST_OF_ONE_TENANT = 50_000
"""Over 80 requests a second, all the time: ten tenants together fill the memory, never one alone."""


class AcceptanceWindow:
    """Remembers requests. When it is full it refuses: to forget one would be to let it come again.

    Each tenant has a share, so that one who asks without end keeps nobody else from asking.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        most: int = MOST_REMEMBERED,
        most_of_one_tenant: int = MOST_OF_ONE_TENANT,
    ) -> None:
        self._clock = clock
        self._most = most
        self._most_of_one = most_of_one_tenant
        self._now = clock()
        self._lock = threading.Lock()  # Requests are opened in threads.
        self._seen: set[bytes] = set()
        self._by_tenant: Counter[str] = Counter()
        self._ends: list[tuple[int, bytes, str]] = []

    def judge(self, timestamp: int) -> None:
        """Raises `TimestampRefused`."""
        with self._lock:
            now = self._time()
        if abs(now - timestamp) > WINDOW_SECONDS:
            raise TimestampRefused(f"the time is more than {WINDOW_SECONDS} s from this service's")

    def take(self, tenant_id: str, timestamp: int, *names: bytes) -> None:
        """Take what these name, of a time that was judged. Raises `Replayed` or `TooManyRemembered`.

        The tenant is no part of the name: what one sent is a replay whoever sends it again.
        """
        # Each name has a length of its own, which keeps it from running over into the next.
        what = hashlib.sha256(b"".join(len(name).to_bytes(4, "big") + name for name in names)).digest()
        with self._lock:
            self._forget()
            if what in self._seen:
                raise Replayed("this nonce was used before with these keys")
            if len(self._seen) >= self._most or self._by_tenant[tenant_id] >= self._most_of_one:
                raise TooManyRemembered("too many encrypted requests came in the last minutes")
            self._seen.add(what)
            self._by_tenant[tenant_id] += 1
            heapq.heappush(self._ends, (timestamp + WINDOW_SECONDS, what, tenant_id))

    def _forget(self) -> None:
        now = self._time()
        while self._ends and self._ends[0][0] < now:
            _, what, tenant_id = heapq.heappop(self._ends)
            self._seen.remove(what)
            self._by_tenant[tenant_id] -= 1
            if not self._by_tenant[tenant_id]:
                del self._by_tenant[tenant_id]

    def _time(self) -> float:
        self._now = max(self._now, self._clock())
        return self._now
