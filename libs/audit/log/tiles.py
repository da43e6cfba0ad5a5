"""It is responsible for a log as it is served to everybody: a signed head, tiles of hashes, bundles of leaves.

Written from https://c2sp.org/tlog-tiles. Nothing of it is believed but what leads to the signed root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from libs.audit.log.tree import HASH_SIZE, Frontier, node_hash
from libs.errors import Code, MeshError

WIDTH = 256
_LEVELS = 8
"""Of the tree in one tile."""
_LEAF_SIZE = 96

Fetch = Callable[[str], bytes | None]
"""Returns what is served under a path, None where nothing is."""


class TileWrong(MeshError):
    """What is served is no tile, or not the one that the tree has there."""

    code = Code.DATA_LOSS
    reason = "TILE_WRONG"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


@dataclass(slots=True)
class TileTree:
    """The tree of a size, by its tiles. Each is fetched when it is needed, and once."""

    fetch: Fetch
    size: int
    _tiles: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)

    def root(self, size: int) -> bytes:
        return self.root_over(0, size)

    def roots_over(self, ranges: Sequence[tuple[int, int]]) -> tuple[bytes, ...]:
        return tuple(self.root_over(low, high) for low, high in ranges)

    def root_over(self, low: int, high: int) -> bytes:
        """Return the root over a range that a proof of RFC 6962 names. Raises `TileWrong`."""
        frontier = Frontier()
        if low == high:
            return frontier.root()
        nodes = []
        while low < high:
            level = (high - low).bit_length() - 1
            nodes.append(self._node(level, low >> level))
            low += 1 << level
        root = nodes.pop()
        while nodes:
            root = node_hash(nodes.pop(), root)
        return root

    def leaves(self) -> Iterator[tuple[str, list[bytes]]]:
        """Yield each tile of leaf hashes with its path, from the first on."""
        for number in range(-(-self.size // WIDTH)):
            yield self._path("0", number, self._width(0, number)), self._tile(0, number)
            self._tiles.pop((0, number))

    def verify_upper(self, level: int, nodes: Sequence[bytes]) -> None:
        """Check the tiles of a level against the nodes that the leaves give. Raises `TileWrong`."""
        for number in range(-(-len(nodes) // WIDTH)):
            expected = list(nodes[number * WIDTH : (number + 1) * WIDTH])
            if self._tile(level, number) != expected:
                raise TileWrong(self._path(str(level), number, len(expected)), "its hashes are not those of its leaves")

    def bundle(self, number: int) -> list[bytes]:
        """Return the leaves of a bundle. Raises `TileWrong`."""
        width = self._width(0, number)
        path, data = self._fetch("entries", number, width)
        leaves, at = [], 0
        while at < len(data):
            end = at + 2 + int.from_bytes(data[at : at + 2], "big")
            leaves.append(data[at + 2 : end])
            at = end
        if at != len(data) or len(leaves) < width or any(len(leaf) != _LEAF_SIZE for leaf in leaves):
            raise TileWrong(path, f"it is no bundle of {width} leaves")
        return leaves[:width]

    def _node(self, level: int, index: int) -> bytes:
        above, below = divmod(level, _LEVELS)
        number, at = divmod(index << below, WIDTH)
        part = Frontier()
        part.add(self._tile(above, number)[at : at + (1 << below)])
        return part.root()

    def _tile(self, level: int, number: int) -> list[bytes]:
        known = self._tiles.get((level, number))
        if known is not None:
            return known
        width = self._width(level, number)
        path, data = self._fetch(str(level), number, width)
        if len(data) % HASH_SIZE or len(data) < width * HASH_SIZE:
            raise TileWrong(path, f"it has {len(data)} bytes, not {width} hashes")
        tile = [data[at : at + HASH_SIZE] for at in range(0, width * HASH_SIZE, HASH_SIZE)]
        return self._tiles.setdefault((level, number), tile)

    def _width(self, level: int, number: int) -> int:
        return min((self.size >> _LEVELS * level) - number * WIDTH, WIDTH)

    def _fetch(self, level: str, number: int, width: int) -> tuple[str, bytes]:
        """A partial tile may be gone once its full one is there."""
        path = self._path(level, number, width)
        data = self.fetch(path)
        if data is None and width < WIDTH:
            data = self.fetch(self._path(level, number, WIDTH))
        if data is None:
            raise TileWrong(path, "it is not served")
        return path, data

    def _path(self, level: str, number: int, width: int) -> str:
        digits = f"{number:03d}"
        digits = digits.zfill(-(-len(digits) // 3) * 3)
        groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
        place = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
        return f"tile/{level}/{place}" + ("" if width == WIDTH else f".p/{width}")
