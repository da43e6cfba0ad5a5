"""It is responsible for sending what begins alike to the same node, whose engine may remember that beginning.

Nodes have places on a ring, and so has each beginning; the node that follows is the one. So a node that comes or goes
moves what lies next to it and nothing else, and no request reads all nodes. A place on the ring is a hash under a key
that is born here and known to nobody: nobody can aim a prompt at the node of somebody else's, and of two tenants that
ask the same each has a place of its own.
"""

from __future__ import annotations

import hashlib
import secrets
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator

_POINTS = 16
"""How many places a node has, so that shares of the ring are about equal."""
_PLACE_OCTETS = 8

_Point = tuple[int, str]


class Affinity:
    """A ring for each model."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(32) if key is None else key
        self._rings: dict[str, list[_Point]] = {}
        self._models: dict[str, frozenset[str]] = {}

    def put(self, name: str, models: Collection[str]) -> None:
        """Give a node its places, for the models that it serves now."""
        wanted, had = frozenset(models), self._models.get(name, frozenset())
        if wanted == had:
            return
        points = [(self._place(b"node", name.encode(), bytes([number])), name) for number in range(_POINTS)]
        for model in wanted - had:
            ring = self._rings.setdefault(model, [])
            for point in points:
                insort(ring, point)
        for model in had - wanted:
            ring = self._rings[model]
            for point in points:
                del ring[bisect_left(ring, point)]
            if not ring:
                del self._rings[model]
        if wanted:
            self._models[name] = wanted
        else:
            del self._models[name]

    def remove(self, name: str) -> None:
        """Take a node's places away, if it has any."""
        self.put(name, ())

    def of(self, model: str, tenant_id: str, beginning: bytes) -> Iterator[str]:
        """Yield the names of the nodes that serve a model, from the place of this beginning on, each once."""
        ring = self._rings.get(model, [])
        start = bisect_left(ring, (self._place(b"prompt", model.encode(), tenant_id.encode(), beginning), ""))
        seen: set[str] = set()
        for number in range(len(ring)):
            name = ring[(start + number) % len(ring)][1]
            if name not in seen:
                seen.add(name)
                yield name

    def _place(self, *parts: bytes) -> int:
        digest = hashlib.blake2b(key=self._key, digest_size=_PLACE_OCTETS)
        for part in parts:
            digest.update(len(part).to_bytes(8) + part)
        return int.from_bytes(digest.digest())
