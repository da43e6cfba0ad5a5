"""A client of C2SP's tlog-tiles: which tiles a tree has, what lies in them, and proofs from nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from libs.transparency.merkle import HASH_SIZE, node_hash
from libs.transparency.tiles import HEIGHT, WIDTH, Tile


def tiles_in(size: int) -> Iterator[Tile]:
    """Yield the tiles of the tree of this size, partial ones included, bundles not."""
    level = 0
    while hashes := size >> HEIGHT * level:
        for index in range(hashes // WIDTH):
            yield Tile(level, index)
        if partial := hashes % WIDTH:
            yield Tile(level, hashes // WIDTH, partial)
        level += 1


def hashes_in(content: bytes, tile: Tile) -> list[bytes]:
    """Return the hashes of a tile's content."""
    assert len(content) == tile.width * HASH_SIZE, tile.path()
    return [content[at : at + HASH_SIZE] for at in range(0, len(content), HASH_SIZE)]


def leaves_in(bundle: bytes) -> list[bytes]:
    """Return the leaf data in a bundle."""
    leaves, at = [], 0
    while at < len(bundle):
        end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        assert end <= len(bundle), "the bundle ends within an entry"
        leaves.append(bundle[at + 2 : end])
        at = end
    return leaves


@dataclass(frozen=True, slots=True)
class TileNodes:
    """The nodes of a tree, by its tiles alone. Implements `NodeReader`."""

    contents: Mapping[tuple[int, int], bytes]
    """By level and index of the tile."""

    def node(self, level: int, index: int) -> bytes:
        if level % HEIGHT:
            return node_hash(self.node(level - 1, 2 * index), self.node(level - 1, 2 * index + 1))
        number, place = divmod(index, WIDTH)
        return self.contents[level // HEIGHT, number][place * HASH_SIZE : (place + 1) * HASH_SIZE]
