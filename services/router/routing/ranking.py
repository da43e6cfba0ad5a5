"""It is responsible for the order in which nodes would be chosen, kept up to date so that no request reads all of them.

It knows loads and models only: whether a node may serve a request is asked of those that come first.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator

_Place = tuple[float, str]
"""Load relative to capacity, and the node's name."""


class Ranking:
    """For each model the nodes that serve it, the least loaded first; which of equals, is chance's to say."""

    def __init__(self, choice: random.Random) -> None:
        self._choice = choice
        self._placed: dict[str, tuple[_Place, tuple[str, ...]]] = {}
        self._ranked: dict[str, list[_Place]] = {}

    def put(self, name: str, models: Collection[str], busy: int, capacity: int) -> None:
        """Give a node its place, or another one. A node without capacity has none."""
        self.remove(name)
        if capacity <= 0:
            return
        # Equal quotients of integers are equal floats, so ties are ties.
        place = (busy / capacity, name)
        self._placed[name] = (place, tuple(models))
        for model in models:
            insort(self._ranked.setdefault(model, []), place)

    def remove(self, name: str) -> None:
        """Take a node's place away, if it has one."""
        place, models = self._placed.pop(name, (None, ()))
        if place is None:
            return
        for model in models:
            ranked = self._ranked[model]
            del ranked[bisect_left(ranked, place)]
            if not ranked:
                del self._ranked[model]

    def of(self, model: str) -> Iterator[str]:
        """Yield the names of nodes that serve a model. Nothing may be put or removed meanwhile."""
        ranked = self._ranked.get(model, [])
        begin = 0
        while begin < len(ranked):
            equals = bisect_right(ranked, ranked[begin][0], lo=begin, key=lambda place: place[0]) - begin
            first = self._choice.randrange(equals)
            for place in range(equals):
                yield ranked[begin + (first + place) % equals][1]
            begin += equals
