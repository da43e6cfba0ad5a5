"""It is responsible for how much of this process's memory request bodies may take, all requests together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.router.errors import BodiesBusy


class Share:
    """What one request takes of the room."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self.taken = 0

    def take(self, count: int) -> None:
        """Take room for so many bytes more that have come. Raises `BodiesBusy`."""
        self._room.take(count)
        self.taken += count


class BodyRoom:
    """Room for `limit` bytes. It is taken as bytes come: what a client only announces takes none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.taken = 0
        """How much of it is taken now, bytes."""

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Give a request its share, which comes back at the end of the block: what was read lives until then."""
        share = Share(self)
        try:
            yield share
        finally:
            self.taken -= share.taken

    def take(self, count: int) -> None:
        """Raises `BodiesBusy`, and takes nothing then."""
        if self.taken + count > self._limit:
            raise BodiesBusy("too many request bodies at once; try again")
        self.taken += count
