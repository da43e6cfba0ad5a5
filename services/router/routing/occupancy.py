"""It is responsible for how busy each node is now: with this router's requests, which it knows, and with others', as
far as the node's last report tells them from its own.

A report is seconds old, and what it counts may have ended since. What this router had there at most since the report
before is taken for its own share: others' are rather told too low, never so high that a free node counts as full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _Place:
    own: int = 0
    peak: int = 0
    """The most of its own since the last report."""
    others: int = 0


class Occupancy:
    """Requests at each listed node."""

    def __init__(self) -> None:
        self._places: dict[str, _Place] = {}

    def know(self, name: str) -> None:
        """Have a place for a node that is listed now."""
        self._places.setdefault(name, _Place())

    def forget(self, name: str) -> None:
        """Forget a node. What still runs there ends without a trace."""
        self._places.pop(name, None)

    def reported(self, name: str, total: int) -> None:
        """Take a node's own count of what it runs and what waits there."""
        if (place := self._places.get(name)) is not None:
            place.others = max(0, total - place.peak)
            place.peak = place.own

    def busy(self, name: str) -> int:
        """Return how many requests a node has, to the best of what is known here."""
        place = self._places.get(name)
        return 0 if place is None else place.own + place.others

    def own(self) -> dict[str, int]:
        """Return this router's own requests by node."""
        return {name: place.own for name, place in self._places.items()}

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Count one request as this node's."""
        place = self._places.get(name) or _Place()
        place.own += 1
        place.peak = max(place.peak, place.own)
        try:
            yield
        finally:
            place.own -= 1
