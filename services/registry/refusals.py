"""It is responsible for refused admissions on record: each once at once, what repeats it as a number a minute later.

A node that is refused asks again and again, and the log forgets nothing; so how much of it the log gets depends on the
clock and not on the node. A registry that is killed loses the numbers of the running minute; one that ends in order
loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from libs.errors import Code, MeshError
from libs.events.outbox import OutboxFull
from libs.rpc.calls import Call, Proceed
from services.registry.admissions import Admissions
from services.registry.providers import SPIFFE_ID

MAX_PAIRS = 1024
"""So many nodes and reasons are told apart in a minute; the rest are counted together."""

_MINUTE_SECONDS = 60.0
_ASKING = ("/Register", "/Renew", "/PresentEvidence")
_UNDECIDED = frozenset(
    {Code.UNAVAILABLE, Code.ABORTED, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.NOT_FOUND}
)
"""Nothing was decided about the node: it asks again, or for something else."""

_FIRST_PRESENT = "EVIDENCE_REQUIRED"
_OTHERS = ("*", "*")

log = structlog.get_logger()


@dataclass(slots=True)
class _Tally:
    since_ms: int
    repeats: int = 0


class Refusals:
    """Takes every refusal, and writes as many as the log is to have."""

    def __init__(self, admissions: Admissions, clock: Callable[[], float] = time.time) -> None:
        self._admissions = admissions
        self._clock = clock
        self._tallies: dict[tuple[str, str], _Tally] = {}

    async def middleware(self, call: Call, proceed: Proceed) -> Any:
        """See every call on its way in and note the nodes that are refused. It changes no answer."""
        try:
            return await proceed()
        except MeshError as refusal:
            if call.method.endswith(_ASKING) and (node := _node(call)) is not None:
                await self.note(node, refusal)
            raise

    async def note(self, spiffe_id: str, refusal: MeshError) -> None:
        """Record that a node was refused, or count it. What finds the outbox full is counted."""
        if refusal.code in _UNDECIDED or refusal.reason == _FIRST_PRESENT:
            return
        pair = (spiffe_id, refusal.reason)
        if pair not in self._tallies and len(self._tallies) >= MAX_PAIRS:
            pair = _OTHERS
        if (tally := self._tallies.get(pair)) is not None:
            tally.repeats += 1
            return
        tally = self._tallies[pair] = _Tally(int(self._clock() * 1000))
        try:
            await self._admissions.refused(*pair)
        except OutboxFull as error:
            log.warning("a refusal is not on record yet", reason=error.reason)
            tally.repeats += 1

    async def end_minute(self) -> None:
        """Record how often each refusal was repeated; the next of each is recorded at once again."""
        ended, self._tallies = self._tallies, {}
        for pair, tally in ended.items():
            if not tally.repeats:
                continue
            try:
                await self._admissions.refused(*pair, repeats=tally.repeats, since_ms=tally.since_ms)
            except OutboxFull:
                since = self._tallies.setdefault(pair, tally)
                if since is not tally:
                    since.repeats, since.since_ms = since.repeats + tally.repeats, tally.since_ms

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_MINUTE_SECONDS)
            await self.end_minute()

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Have the minutes end while the body runs; after it, in order, the one that is running."""
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep())
            try:
                yield
            finally:
                keeping.cancel()
        await self.end_minute()


def _node(call: Call) -> str | None:
    """The SPIFFE ID of who calls, if it is a node's: the handshake has proved that the mesh CA gave it."""
    for name in call.context.auth_context().get("peer_spiffe_id", ()):
        spiffe_id = name.decode(errors="replace")
        return spiffe_id if SPIFFE_ID.fullmatch(spiffe_id) else None
    return None
