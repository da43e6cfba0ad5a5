"""It is responsible for what an engine says of itself while it serves: how full its cache is, that its work goes on.

What it says of its work is a sign of life, whoever has to wait for it: a long prompt or a full cache keeps every
question of this node's waiting, and the engine is well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from services.node.channel import EngineChannel, EngineTooSlow, EngineUnavailable
from services.node.metrics import permille_of, totals_of


class Readings:
    """The newest of one engine."""

    def __init__(self, channel: EngineChannel, kv_cache_gauge: str | None, work: Collection[str]) -> None:
        """`work` are the metrics that change while the model works, and only then."""
        self._channel = channel
        self._kv_cache_gauge = kv_cache_gauge
        self._work = work
        self._totals: Mapping[str, float] = {}
        self.kv_cache_permille: int | None = None
        """None when it does not say."""

    @property
    def tell(self) -> bool:
        """Whether there is anything to be read."""
        return self._kv_cache_gauge is not None or bool(self._work)

    @property
    def tell_work(self) -> bool:
        """Whether this engine was read to say what it has worked."""
        return bool(self._totals)

    def forget(self) -> None:
        """Another engine begins."""
        self.kv_cache_permille, self._totals = None, {}

    async def read(self) -> None:
        """Ask the engine, and hear a sign of life where its work went on since it was asked before."""
        try:
            said = await self._channel.metrics() or ""
        except (EngineUnavailable, EngineTooSlow):
            self.kv_cache_permille = None
            return
        if self._kv_cache_gauge is not None:
            self.kv_cache_permille = permille_of(said, self._kv_cache_gauge)
        totals = totals_of(said, self._work)
        if self._totals and totals and totals != self._totals:
            self._channel.hear()
        self._totals = totals or self._totals
