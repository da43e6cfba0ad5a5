"""It is responsible for which frames a reader is given as they lie in their files, and for how many wait for readers.

A frame goes whole or not at all: one that has a single entry whose body may not be given out is read out by entries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter
from typing import TypeAlias

from services.ledger.storage.reading import WholeFrame
from services.ledger.storage.store import LogStore

_MESSAGE_BYTES = 512 * 1024
"""A message that has so much gets no further frame."""
_MAX_BYTES = 3 * 1024 * 1024
"""How much one message may hold, so that it stays below gRPC's limit."""
_WAITING_BYTES = 2 * 1024 * 1024
"""How much may wait for all readers together; gRPC holds it some three times over besides."""

AreOpen: TypeAlias = Callable[[Sequence[frozenset[tuple[int, bytes]]]], Awaitable[Sequence[bool]]]
"""Says of each frame whether what was sealed in its months, epochs and vaults, may be given out, until something is
awaited."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What may go whole."""

    frames: tuple[WholeFrame, ...]
    """The first one may begin before the place that was asked for."""
    entries_until: int
    """Where there is no frame, entries are to be given up to here before frames are asked for again."""


class WholeFrames:
    """Those of one log. For use on the event loop alone."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._waiting = 0

    async def take(self, start: int, size: int, are_open: AreOpen) -> Taken:
        """Return the frames of a message from the one with entry `start` on, none beyond `size`. Raises `LogDamaged`.

        They are given out as they were judged only if nothing is awaited between this and `waiting`.
        """
        if self._waiting >= _WAITING_BYTES:
            return Taken((), start + 1)
        found = await asyncio.to_thread(self._read, start, size)
        # After the reading: what was closed meanwhile is not given out any more.
        judged = zip(found, await are_open([frame.months for frame in found]), strict=True)
        frames = tuple(frame for frame, _ in takewhile(itemgetter(1), judged))
        if not frames:
            return Taken((), found[0].end if found else start + 1)
        if self._waiting + _size(frames) > _WAITING_BYTES:
            return Taken((), start + 1)
        return Taken(frames, start)

    @contextmanager
    def waiting(self, frames: tuple[WholeFrame, ...]) -> Iterator[None]:
        """Count frames for as long as their reader has not taken them."""
        size = _size(frames)
        self._waiting += size
        try:
            yield
        finally:
            self._waiting -= size

    def _read(self, start: int, size: int) -> list[WholeFrame]:
        found: list[WholeFrame] = []
        held = 0
        while start < size and held < _MESSAGE_BYTES:
            frame = self._store.reader.whole(self._store.index.place(start), _MAX_BYTES - held)
            if frame is None or frame.end > size:
                break
            found.append(frame)
            start, held = frame.end, held + len(frame.data)
        return found


def _size(frames: tuple[WholeFrame, ...]) -> int:
    return sum(len(frame.data) for frame in frames)
