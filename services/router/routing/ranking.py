"""It is responsible for the order in which nodes would be chosen, kept up to date so that no request reads all of them.

It knows loads, models and endpoints only: whether a node may serve a request is asked of those that come first.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator

from libs.aci.endpoints import Endpoint

Offer = tuple[str, Endpoint]
"""A model, and where it is served."""
_Place = tuple[float, str]
"""Load relative to capacity, and the node's name."""


class Ranking:
    """For each offer the nodes that make it, the least loaded first; which of equals, is chance's to say."""

    def __init__(self, choice: random.Random) -> None:
        self._choice = choice
        self._placed: dict[str, tuple[_Place, tuple[Offer, ...]]] = {}
        self._ranked: dict[Offer, list[_Place]] = {}

    def put(self, name: str, offers: Collection[Offer], busy: int, capacity: int) -> None:
        """Give a node its place, or another one. A node without capacity has none."""
        self.remove(name)
        if capacity <= 0:
            return
        # Equal quotients of integers are equal floats, so ties are ties.
        place = (busy / capacity, name)
        self._placed[name] = (place, tuple(offers))
        for offer in offers:
            insort(self._ranked.setdefault(offer, []), place)

    def remove(self, name: str) -> None:
        """Take a node's place away, if it has one."""
        place, offers = self._placed.pop(name, (None, ()))
        if place is None:
            return
        for offer in offers:
            ranked = self._ranked[offer]
            del ranked[bisect_left(ranked, place)]
            if not ranked:
                del self._ranked[offer]

    def of(self, model: str, endpoint: Endpoint) -> Iterator[str]:
        """Yield the names of nodes that serve a model there. Nothing may be put or removed meanwhile."""
        ranked = self._ranked.get((model, endpoint), [])
        begin = 0
        while begin < len(ranked):
            equals = bisect_right(ranked, ranked[begin][0], lo=begin, key=lambda place: place[0]) - begin
            first = self._choice.randrange(equals)
            for place in range(equals):
                yield ranked[begin + (first + place) % equals][1]
            begin += equals
