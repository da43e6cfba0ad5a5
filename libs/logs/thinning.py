"""It is responsible for lines that anybody may cause, as often as they like: of each kind one is written a minute, at
once, and at its end how many there were besides.

Who writes such a line says so, `thinned=True`. Its kind is its event and `reason`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass

import structlog
from structlog.types import EventDict, WrappedLogger

MARK, MORE = "thinned", "more"
PERIOD_SECONDS = 60.0
MOST_KINDS = 256
"""So many are told apart by their reasons, which others may have given; what comes beyond by events alone."""

_Kind = tuple[str, str | None]

log = structlog.get_logger()


@dataclass(slots=True)
class _Line:
    until: float
    more: int = 0


class Thinning:
    """Processor: drop what there was lately. Where no event loop runs, the next one written has their number."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, period_seconds: float = PERIOD_SECONDS) -> None:
        self._clock = clock
        self._period_seconds = period_seconds
        self._lines: dict[_Kind, _Line] = {}

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if not event.pop(MARK, False):
            return event
        kind, now = self._kind(event), self._clock()
        last = self._lines.get(kind)
        if last is not None and now < last.until:
            last.more += 1
            raise structlog.DropEvent
        self._lines[kind] = line = _Line(now + self._period_seconds)
        with suppress(RuntimeError):
            # In a context of its own: whose call it was that came first says nothing of the others.
            asyncio.get_running_loop().call_later(
                self._period_seconds, self._tell, kind, line, method, context=Context()
            )
        return {**event, MORE: last.more} if last is not None and last.more else event

    def _kind(self, event: EventDict) -> _Kind:
        name, reason = str(event.get("event")), event.get("reason")
        kind = (name, None if reason is None else str(reason))
        return kind if kind in self._lines or len(self._lines) < MOST_KINDS else (name, None)

    def _tell(self, kind: _Kind, line: _Line, method: str) -> None:
        """The period is over."""
        if self._lines.get(kind) is not line:
            return  # The next one has been written, and said it.
        del self._lines[kind]
        if line.more:
            name, reason = kind
            getattr(log, method)(name, reason=reason, **{MORE: line.more})
