"""The second reading's tree, held against published vectors, and against the first reading's."""

from __future__ import annotations

from hashlib import sha256

import pytest

from libs.audit.log.tree import (
    EMPTY_ROOT,
    Frontier,
    PathWrong,
    consistency_ranges,
    inclusion_ranges,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from libs.transparency import merkle

LEAVES = [leaf_hash(bytes([number])) for number in range(40)]


def root_over(low: int, high: int) -> bytes:
    frontier = Frontier()
    frontier.add(LEAVES[low:high])
    return frontier.root()


def test_roots_are_those_of_the_published_vectors() -> None:
    inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    frontier = Frontier()
    assert frontier.root() == EMPTY_ROOT == sha256(b"").digest()
    frontier.add([leaf_hash(bytes.fromhex(text)) for text in inputs])
    assert frontier.root().hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 40])
def test_leaves_give_one_root_however_they_are_added(pieces: int) -> None:
    frontier = Frontier()
    for at in range(0, len(LEAVES), pieces):
        frontier.add(LEAVES[at : at + pieces])
        compact = merkle.CompactRange()
        for leaf in LEAVES[: at + pieces]:
            compact.append(leaf)
        assert (frontier.root(), frontier.peaks) == (compact.root(), compact.peaks)
        assert Frontier(frontier.size, frontier.peaks).root() == compact.root()


def test_nodes_that_become_complete_are_kept() -> None:
    frontier = Frontier()
    kept: list[bytes] = []
    for at in range(0, 40, 5):
        kept += frontier.add(LEAVES[at : at + 5], keep=(2,)).get(2, [])
    assert kept == [root_over(at, at + 4) for at in range(0, 40, 4)]


def test_peaks_must_be_as_many_as_the_size_has() -> None:
    with pytest.raises(PathWrong, match="3 leaves"):
        Frontier(3, [bytes(32)])


def test_every_consistency_path_is_accepted_and_no_other() -> None:
    for second in range(2, 20):
        for first in range(1, second):
            proof = [root_over(low, high) for low, high in consistency_ranges(first, second)]
            tree = merkle.CompleteTree([*LEAVES[:second], *[bytes(32)] * (32 - second)])
            assert proof == merkle.consistency_path(tree, first, second)
            old, new = root_over(0, first), root_over(0, second)
            verify_consistency(first, second, proof, old, new)
            wrong = [[*proof, bytes(32)], proof[:-1], [bytes(32), *proof[1:]]]
            for steps in wrong:
                with pytest.raises(PathWrong):
                    verify_consistency(first, second, steps, old, new)
            with pytest.raises(PathWrong):
                verify_consistency(first, second, proof, bytes(32), new)


def test_every_inclusion_path_is_accepted_and_no_other() -> None:
    for size in range(1, 20):
        for index in range(size):
            path = [root_over(low, high) for low, high in inclusion_ranges(index, size)]
            root = root_over(0, size)
            verify_inclusion(LEAVES[index], index, size, path, root)
            for steps in ([*path, bytes(32)], path[1:] or [bytes(32)]):
                with pytest.raises(PathWrong):
                    verify_inclusion(LEAVES[index], index, size, steps, root)
            with pytest.raises(PathWrong):
                verify_inclusion(bytes(32), index, size, path, root)
    with pytest.raises(PathWrong, match="leaf 3 is not in a tree of 3"):
        verify_inclusion(LEAVES[0], 3, 3, [], LEAVES[0])
