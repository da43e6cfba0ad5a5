"""It is responsible for how much of this process's memory request bodies may take, over every face: all requests
together, and those of one tenant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from services.router.errors import BodiesBusy

_PARTS = 4
"""One tenant has at most one part of so many: others find room, however much it has waiting."""


class Share:
    """What one request takes of the room."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._tenant_id: str | None = None
        self.taken = 0

    def assign(self, tenant_id: str) -> None:
        """Say whose it is, before anything is taken. What belongs to nobody yet is all one tenant's."""
        self._tenant_id = tenant_id

    def take(self, count: int) -> None:
        """Take room for so many bytes more that have come. Raises `BodiesBusy`, and takes nothing then."""
        self._room.take(self._tenant_id, count)
        self.taken += count

    def give_back(self) -> None:
        self._room.give_back(self._tenant_id, self.taken)


class BodyRoom:
    """Room for `limit` bytes, and at least for one body of the `largest`. It is taken as bytes come: what a client only
    announces takes none.
    """

    def __init__(self, limit: int, largest: int) -> None:
        self._limit = max(limit, largest)
        self._part = max(self._limit // _PARTS, largest)
        self._tenants: dict[str | None, int] = {}
        self.taken = 0
        """How much of it is taken now, bytes."""

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Give a request its share, which comes back at the end of the block: what was read lives until then."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back()

    def take(self, tenant_id: str | None, count: int) -> None:
        """Raises `BodiesBusy`, and takes nothing then."""
        held = self._tenants.get(tenant_id, 0)
        if held + count > self._part:
            raise BodiesBusy("too many request bodies of this tenant at once; try again")
        if self.taken + count > self._limit:
            raise BodiesBusy("too many request bodies at once; try again")
        self._tenants[tenant_id] = held + count
        self.taken += count

    def give_back(self, tenant_id: str | None, count: int) -> None:
        """Nothing is kept of a tenant that has no body here."""
        left = self._tenants.get(tenant_id, 0) - count
        if left > 0:
            self._tenants[tenant_id] = left
        else:
            self._tenants.pop(tenant_id, None)
        self.taken -= count
