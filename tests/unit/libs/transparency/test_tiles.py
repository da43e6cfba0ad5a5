"""Tiles: their names, their content, and that an implementation of others reads the same tree in them."""

from __future__ import annotations

import pytest

from libs.transparency import merkle, tiles
from libs.transparency.tiles import Tile, TileMalformed
from libs.transparency.tree import Tree
from tests.fakes.tile_reader import hashes_in, leaves_in, tiles_in


def tree_of(size: int) -> Tree:
    tree = Tree()
    for number in range(size):
        tree.append(merkle.leaf_hash(b"leaf %d" % number))
    return tree


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 1234067), "tile/0/x001/x234/067"),
        (Tile(1, 5, 17), "tile/1/005.p/17"),
        (Tile(63, 999), "tile/63/999"),
        (Tile(None, 1000, 255), "tile/entries/x001/000.p/255"),
    ],
)
def test_path_reads_back(tile: Tile, path: str) -> None:
    assert (tile.path(), tiles.parse_path(path)) == (path, tile)


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/1",
        "tile/0/x000/001",
        "tile/0/x01/001",
        "tile/0/x001/x001",
        "tile/0/001/",
        "tile/0/001\n",
        "tile/00/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/257",
        "tile/entries/000.p/999",
        "tile/leaves/000",
        "/tile/0/000",
        "tile/0/\N{ARABIC-INDIC DIGIT ONE}00",
        "tile/0/x" + "1" * 3 + "/../000",
        "tile/0/" + "x111/" * 1500 + "000",
    ],
)
def test_what_is_no_tiles_one_path_is_refused(path: str) -> None:
    with pytest.raises(TileMalformed):
        tiles.parse_path(path)


def test_tiles_of_a_tree_are_those_of_the_specification() -> None:
    """The specification's own example, a tree of 70,000 leaves; and a tree of one full tile."""
    found = list(tiles_in(70_000))
    assert found.count(Tile(0, 273, 112)) == found.count(Tile(1, 0)) == found.count(Tile(1, 1, 17)) == 1
    assert found[-1] == Tile(2, 0, 1)
    assert len(found) == 273 + 4
    assert list(tiles_in(256)) == [Tile(0, 0), Tile(1, 0, 1)]
    assert list(tiles_in(0)) == []
    assert all(tile.end_leaf <= 70_000 for tile in found)


def test_tile_holds_the_roots_of_the_level_below() -> None:
    tree = tree_of(1000)
    (first, *_), below = (hashes_in(tiles.hashes_of(tree, each), each) for each in (Tile(1, 0, 3), Tile(0, 0)))
    assert merkle.root_of(below) == first == tree.node(8, 0)


def test_bundle_holds_every_leaf_behind_its_length() -> None:
    leaves = [b"", b"one", b"x" * 65_535]
    data = tiles.bundle(leaves)
    assert data[:7] == b"\x00\x00\x00\x03one"
    assert leaves_in(data) == leaves
