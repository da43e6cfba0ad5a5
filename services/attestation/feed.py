"""It is responsible for telling watchers of every appraisal, in order, so that one who was away can go on.

The newest ones are kept, and a watcher is no more than a place among them: one that reads too slowly costs nothing and
is told so when it is overtaken.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from libs.errors import Code, MeshError

HEARTBEAT_SECONDS = 10.0
_KEPT = 4096


class SequenceNotHeld(MeshError):
    """What follows that number is no longer here, or was never: watch from now on, and look in the archive."""

    code = Code.OUT_OF_RANGE
    reason = "SEQUENCE_NOT_HELD"


class WatcherTooSlow(MeshError):
    """The watcher was overtaken by what happened meanwhile: watch again from now on."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "WATCHER_TOO_SLOW"


@dataclass(frozen=True, slots=True)
class Made:
    """An appraisal that was made."""

    # Of the record that stands for it; empty where it is of what never was evidence.
    record_digest: bytes
    evidence_digest: bytes
    role: str
    # SPIFFE ID of the node that it is about; empty when somebody asked for it.
    spiffe_id: str
    policy_version: int
    # Unix seconds.
    appraised_at: int
    # None when all accepted.
    refusal: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """What a watcher gets: an appraisal and its number, or nothing new since that number."""

    sequence: int
    made: Made | None


class Feed:
    """The newest appraisals of this process."""

    def __init__(self, started_at_ms: int, kept: int = _KEPT) -> None:
        """Numbers begin with the time of the start, so those of an earlier process are not mistaken for these."""
        self._sequence = started_at_ms
        self._kept: deque[Made] = deque(maxlen=kept)
        self._changed = asyncio.Event()

    def publish(self, made: Made) -> None:
        self._sequence += 1
        self._kept.append(made)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def follow(self, after: int, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> AsyncGenerator[Told, None]:
        """Yield what follows a number, for ever; 0 is the newest. Raises `SequenceNotHeld`, `WatcherTooSlow`."""
        place = after or self._sequence
        if not self._before_kept <= place <= self._sequence:
            raise SequenceNotHeld("what follows that number is not here: watch from now on")
        while True:
            changed = self._changed
            if place < self._before_kept:
                raise WatcherTooSlow("watch again: this watcher fell too far behind")
            if place < self._sequence:
                place += 1
                yield Told(place, self._kept[place - self._before_kept - 1])
                continue
            try:
                async with asyncio.timeout(heartbeat_seconds):
                    await changed.wait()
            except TimeoutError:
                yield Told(place, None)

    @property
    def _before_kept(self) -> int:
        return self._sequence - len(self._kept)
