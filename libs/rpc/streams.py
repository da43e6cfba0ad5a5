"""It is responsible for ending long-lived streams when their server drains: they would hold it until its patience ends.

Their callers ask again wherever the service is by then; nothing is lost by telling them at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from libs.errors import Code, MeshError
from libs.rpc.calls import Call, Proceed
from libs.rpc.policies import MethodRule


class ServerStopping(MeshError):
    """The server is about to end: connect again and go on from where the stream was."""

    code = Code.UNAVAILABLE
    reason = "SERVER_STOPPING"


class LongLivedStreams:
    """The streams of one server that run now."""

    def __init__(self, methods: Mapping[str, MethodRule]) -> None:
        self._methods = frozenset(method for method, rule in methods.items() if rule.long_lived)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def middleware(self, call: Call, proceed: Proceed) -> Any:
        """Run a call so that `end` ends it, if it is of a long-lived method."""
        if call.method not in self._methods or (task := asyncio.current_task()) is None:
            return await proceed()
        self._tasks.add(task)
        try:
            return await proceed()
        except asyncio.CancelledError:
            # Who cancelled: this server, or the caller? Only the caller knows already.
            if self._stopping:
                raise ServerStopping("the server stops: connect again") from None
            raise
        finally:
            self._tasks.discard(task)

    def end(self) -> None:
        """End them all. MUST be followed by the end of the server, which takes no new ones then."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
