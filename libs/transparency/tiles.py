"""C2SP tiles: the tree and the leaves as files of fixed content, from which anyone computes any proof alone.

Follows https://c2sp.org/tlog-tiles. A tile holds up to 256 hashes of one level in eight; a bundle holds the leaf data
behind a tile of level 0. What a path names never changes, so it may be cached for ever.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.transparency.merkle import NodeReader

WIDTH = 256
HEIGHT = 8
_HIGHEST_LEVEL = 63
_LENGTH = struct.Struct(">H")
_PATH = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


class TileMalformed(MeshError):
    """The path names no tile."""

    code = Code.INVALID_ARGUMENT
    reason = "TILE_MALFORMED"


@dataclass(frozen=True, slots=True)
class Tile:
    """The name of one tile, or of the bundle of leaf data behind a tile of level 0."""

    level: int | None
    """None for a bundle."""
    index: int
    width: int = WIDTH

    @property
    def start(self) -> int:
        """The first hash's index within its level, or the first leaf's."""
        return self.index * WIDTH

    @property
    def end_leaf(self) -> int:
        """The size that a tree must have for the tile to have come about."""
        return (self.start + self.width) << HEIGHT * (self.level or 0)

    def path(self) -> str:
        digits = f"{self.index:03}"
        digits = digits.rjust(-(-len(digits) // 3) * 3, "0")
        *above, last = (digits[at : at + 3] for at in range(0, len(digits), 3))
        named = "".join(f"x{each}/" for each in above) + last
        level = "entries" if self.level is None else self.level
        return f"tile/{level}/{named}" + ("" if self.width == WIDTH else f".p/{self.width}")


def parse_path(path: str) -> Tile:
    """Read the one path of a tile, without a slash before it. Raises `TileMalformed`."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise TileMalformed("no such tile")
    level = None if found["level"] == "entries" else int(found["level"])
    tile = Tile(level, int(re.sub("[x/]", "", found["index"])), int(found["width"] or WIDTH))
    if (level or 0) > _HIGHEST_LEVEL or tile.width > WIDTH or tile.path() != path:
        raise TileMalformed("no such tile")
    return tile


def hashes_of(nodes: NodeReader, tile: Tile) -> bytes:
    """Return a tile's content. The tree MUST have reached its `end_leaf`; not for bundles."""
    level = HEIGHT * (tile.level or 0)
    return b"".join(nodes.node(level, index) for index in range(tile.start, tile.start + tile.width))


def bundle(leaves: Iterable[bytes]) -> bytes:
    """Return the content of a bundle."""
    return b"".join(_LENGTH.pack(len(data)) + data for data in leaves)
