"""It is responsible for the log's tiles and bundles: what lies under a signed tree, and nothing beyond it.

Whatever was served once stays as it was, so that every size that was ever signed keeps its partial tiles.
"""

from __future__ import annotations

import asyncio

from libs.errors import Code, MeshError
from libs.transparency.tiles import Tile, bundle, hashes_of
from services.ledger.checkpoints.auditing import Checkpoints
from services.ledger.storage.store import LogStore

_AT_ONCE = 4
"""How many are read at once: a bundle's frames may be large, and anyone may ask."""


class TileNotSigned(MeshError):
    """No signed tree has that tile yet."""

    code = Code.NOT_FOUND
    reason = "TILE_NOT_SIGNED"


class Tiles:
    """Reads tiles off the loop."""

    def __init__(self, store: LogStore, checkpoints: Checkpoints) -> None:
        self._store = store
        self._checkpoints = checkpoints
        self._reading = asyncio.Semaphore(_AT_ONCE)

    async def read(self, tile: Tile) -> bytes:
        """Return a tile's content, or a bundle's. Raises `TileNotSigned`, `NoCheckpoint` or `LogDamaged`."""
        if tile.end_leaf > self._checkpoints.newest.size:
            raise TileNotSigned("no signed tree has that tile yet")
        async with self._reading:
            return await asyncio.to_thread(self._read, tile)

    def _read(self, tile: Tile) -> bytes:
        if tile.level is not None:
            return hashes_of(self._store.index.tree, tile)
        entries = self._store.reader.entries(tile.start, tile.end_leaf)
        return bundle(stored.row.leaf_data for stored in entries)
