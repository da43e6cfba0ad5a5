"""RFC 6962 trees and proofs, with pymerkle as the oracle."""

from __future__ import annotations

from hashlib import sha256

import pymerkle
import pytest

from libs.transparency import merkle
from libs.transparency.merkle import CompactRange, CompleteTree, ProofInvalid, SizeNotReached
from libs.transparency.tree import Tree

LARGEST = 70


def data(number: int) -> bytes:
    return b"entry %d" % number


@pytest.fixture(scope="module")
def oracle() -> pymerkle.InmemoryTree:
    tree = pymerkle.InmemoryTree(algorithm="sha256")  # type: ignore[no-untyped-call]
    for number in range(1100):
        tree.append_entry(data(number))
    return tree


@pytest.fixture(scope="module")
def tree() -> Tree:
    grown = Tree()
    for number in range(1100):
        grown.append(merkle.leaf_hash(data(number)))
    return grown


def test_roots_are_the_oracles(oracle: pymerkle.InmemoryTree, tree: Tree) -> None:
    compact = CompactRange()
    for size in range(1101):
        if size:
            assert compact.root() == oracle.get_root(size)
        if size % 97 == 0 or size in (255, 256, 257, 511, 512, 1024):
            assert tree.root(size) == compact.root()
        compact.append(merkle.leaf_hash(data(size)))
    assert CompactRange().root() == tree.root(0) == sha256(b"").digest()


def test_leaves_added_together_and_one_by_one_make_the_same_tree(oracle: pymerkle.InmemoryTree) -> None:
    leaves = [merkle.leaf_hash(data(number)) for number in range(200)]
    for start in range(70):
        for end in (start, start + 1, start + 2, start + 63, start + 64, 200):
            grown = CompactRange()
            grown.extend(leaves[:start])
            before = grown.copy()
            grown.extend(leaves[start:end])
            assert grown.root() == (oracle.get_root(end) if end else merkle.EMPTY_ROOT)
            assert (grown.size, len(grown.peaks)) == (end, end.bit_count())
            assert (before.size, len(before.peaks)) == (start, start.bit_count())


def test_inclusion_paths_are_the_oracles_and_verify(oracle: pymerkle.InmemoryTree, tree: Tree) -> None:
    sizes = [*range(1, LARGEST), 256, 257, 1100]
    for size in sizes:
        for index in range(0, size, 1 if size < LARGEST else 51):
            path = merkle.inclusion_path(tree, index, size)
            theirs = oracle.prove_inclusion(index + 1, size)
            assert path == theirs.path[1:]
            merkle.verify_inclusion(tree.leaf(index), index, size, path, tree.root(size))


def test_consistency_paths_lead_to_the_oracles_roots(oracle: pymerkle.InmemoryTree, tree: Tree) -> None:
    # The oracle's own paths split further than RFC 6962's, so only the roots can be compared.
    for second in [*range(1, 34), 256, 300, 1100]:
        for first in range(1, second + 1, 1 if second < 34 else 17):
            path = merkle.consistency_path(tree, first, second)
            merkle.verify_consistency(first, second, path, oracle.get_root(first), oracle.get_root(second))


def test_complete_tree_gives_the_same_paths(tree: Tree) -> None:
    for size in (*range(1, 34), 37, 63, 64):
        complete = CompleteTree([tree.leaf(index) for index in range(size)])
        paths = complete.paths()
        for index in range(size):
            path = merkle.inclusion_path(tree, index, size)
            assert merkle.inclusion_path(complete, index, size) == path == list(paths[index])
        assert complete.root == tree.root(size)


def test_changed_inclusion_proofs_are_refused(tree: Tree) -> None:
    root, leaf = tree.root(13), tree.leaf(5)
    path = merkle.inclusion_path(tree, 5, 13)
    merkle.verify_inclusion(leaf, 5, 13, path, root)
    wrong = [
        (leaf, 4, 13, path, root),
        (leaf, 5, 29, path, root),
        (leaf, 13, 13, path, root),
        (leaf, -1, 13, path, root),
        (tree.leaf(6), 5, 13, path, root),
        (leaf, 5, 13, path[:-1], root),
        (leaf, 5, 13, [*path, root], root),
        (leaf, 5, 13, [path[0][:-1], *path[1:]], root),
        (leaf, 5, 13, path[::-1], root),
        (leaf, 5, 13, path, tree.root(12)),
    ]
    for values in wrong:
        with pytest.raises(ProofInvalid):
            merkle.verify_inclusion(*values)


def test_changed_consistency_proofs_are_refused(tree: Tree) -> None:
    old, new = tree.root(6), tree.root(13)
    path = merkle.consistency_path(tree, 6, 13)
    wrong = [
        (6, 13, path[:-1], old, new),
        (6, 13, [*path, old], old, new),
        (6, 13, [], old, new),
        (7, 13, path, old, new),
        (13, 6, path, new, old),
        (6, 13, path, tree.root(5), new),
        (6, 13, path, old, tree.root(12)),
        (6, 6, [], old, new),
        (6, 6, path, old, old),
        (0, 13, [], old, new),
        (0, 0, [], merkle.EMPTY_ROOT, new),
        (8, 13, [], tree.root(8), new),
        (6, 13, [step[:-1] for step in path], old, new),
    ]
    for values in wrong:
        with pytest.raises(ProofInvalid):
            merkle.verify_consistency(*values)


def test_every_tree_extends_the_empty_one(tree: Tree) -> None:
    merkle.verify_consistency(0, 13, [], merkle.EMPTY_ROOT, tree.root(13))
    merkle.verify_consistency(0, 0, [], merkle.EMPTY_ROOT, merkle.EMPTY_ROOT)
    assert merkle.consistency_path(tree, 0, 13) == []


def test_proof_outside_the_tree_is_refused(tree: Tree) -> None:
    with pytest.raises(SizeNotReached):
        merkle.inclusion_path(tree, 5, 5)
    with pytest.raises(SizeNotReached):
        merkle.consistency_path(tree, 6, 5)


def test_compact_range_needs_its_peaks() -> None:
    with pytest.raises(ValueError, match="3 leaves has 2 peaks"):
        CompactRange(3, [bytes(32)])
