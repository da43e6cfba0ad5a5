"""It is responsible for streams that bring ever more work: they end when this service may accept none any more.

A stream is let in once, under a policy that was fresh then, and may go on for as long as its caller's lease. What comes
over it later is work like any other, so it is cut when policy is stale, and who called is refused until it is fresh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from libs.errors import MeshError
from libs.identity.freshness import PolicyKeeper, PolicyStale

log = structlog.get_logger()


class Streams:
    """What runs on the freshness of this service's policy."""

    def __init__(self, policy: PolicyKeeper) -> None:
        self._policy = policy
        self._running: set[asyncio.Task[object]] = set()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Run the current task until policy is stale. It then ends with `PolicyStale`."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call runs in a task")
        self._running.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._running:
                raise
            raise PolicyStale("the policy here went stale while the call ran") from None
        finally:
            self._running.discard(task)

    def sweep(self) -> None:
        """End everything unless policy is fresh."""
        try:
            self._policy.require_fresh()
        except MeshError as error:
            cut, self._running = self._running, set()
            for task in cut:
                task.cancel()
            if cut:
                log.warning("streams ended", why=error.reason, count=len(cut))
