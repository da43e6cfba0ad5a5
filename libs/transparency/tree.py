"""A log's tree: every complete subtree of 256 leaves and more in memory, and the hashes of the newest leaves.

Hashes of older leaves are asked of whoever stores them. Nodes below 256 leaves are hashed again when a proof needs them
(at most 255 hashes each), so the tree grows by a quarter of a byte a leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from libs.transparency.merkle import HASH_SIZE, complete_subtrees, node_hash, pairs_hashed, root

_KEPT_LEVEL = 8
SUBTREE = 1 << _KEPT_LEVEL
"""How many leaves the smallest subtree has whose root is kept."""

StoredLeaves = Callable[[int, int], bytes]
"""Gives the hashes of the leaves from one index up to, not including, another, end to end."""


def _nothing_stored(low: int, high: int) -> bytes:
    raise IndexError(f"nobody stores leaves {low} to {high}")


@dataclass(slots=True)
class _Recent:
    """The newest leaves' hashes."""

    first: int
    hashes: bytearray = field(default_factory=bytearray)


class Tree:
    """Grows at its end only; one writer, any readers. Implements `merkle.NodeReader`."""

    __slots__ = ("_kept", "_recent", "_stored")

    def __init__(self, stored: StoredLeaves = _nothing_stored) -> None:
        """`stored` gives the hashes of leaves that `restore` or `release` say are not this tree's to hold."""
        self._stored = stored
        self._recent = _Recent(0)
        self._kept: list[bytearray] = []

    @property
    def size(self) -> int:
        recent = self._recent
        return recent.first + len(recent.hashes) // HASH_SIZE

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        self.extend(leaf)

    def extend(self, leaves: bytes) -> None:
        """Add leaf hashes, end to end."""
        start, end = self.size, self.size + len(leaves) // HASH_SIZE
        grown = self._recent.hashes
        grown += leaves
        for complete in range(start // SUBTREE, end // SUBTREE):
            self._keep(_subtree(self.leaves(complete * SUBTREE, (complete + 1) * SUBTREE)))

    def restore(self, nodes: Iterable[bytes], size: int) -> None:
        """Go on to `size` with stored leaves; `nodes` are the subtrees of 256 leaves that become complete by them.

        Only before leaves were appended that are not stored.
        """
        for node in nodes:
            self._keep(node)
        self._recent = _Recent(size)

    def release(self, size: int) -> None:
        """Drop the hashes of the leaves below `size`, which ARE stored."""
        recent = self._recent
        self._recent = _Recent(size, recent.hashes[(size - recent.first) * HASH_SIZE :])

    def leaf(self, index: int) -> bytes:
        """Return one leaf hash. Raises `IndexError` beyond the tree."""
        return self.leaves(index, index + 1)

    def leaves(self, low: int, high: int) -> bytes:
        """Return some leaves' hashes, end to end. Raises `IndexError` beyond the tree."""
        recent = self._recent
        if not 0 <= low <= high <= recent.first + len(recent.hashes) // HASH_SIZE:
            raise IndexError(f"no leaves {low} to {high}")
        stored = self._stored(low, min(high, recent.first)) if low < recent.first else b""
        start = (max(low, recent.first) - recent.first) * HASH_SIZE
        end = (max(high, recent.first) - recent.first) * HASH_SIZE
        return stored + bytes(recent.hashes[start:end])

    def node(self, level: int, index: int) -> bytes:
        if level >= _KEPT_LEVEL:
            return _slot(self._kept[level - _KEPT_LEVEL], index)
        return _subtree(self.leaves(index << level, (index + 1) << level))

    def kept(self, low: int, high: int) -> bytes:
        """Return the roots of the subtrees of 256 leaves from one number up to, not including, another, end to end."""
        return bytes(self._kept[0][low * HASH_SIZE : high * HASH_SIZE]) if self._kept else b""

    def peaks(self, size: int) -> list[bytes]:
        """Return the roots of the complete subtrees that make up the first `size` leaves, largest first."""
        return [self.node(level, low >> level) for low, level in complete_subtrees(0, size)]

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first `size` leaves, or of all."""
        return root(self, self.size if size is None else size)

    def _keep(self, subtree: bytes) -> None:
        for kept in self._kept:
            kept += subtree
            if len(kept) // HASH_SIZE & 1:
                return
            subtree = node_hash(bytes(kept[-2 * HASH_SIZE : -HASH_SIZE]), subtree)
        self._kept.append(bytearray(subtree))


def completed_by(low: int, high: int) -> tuple[int, int]:
    """Return which subtrees of 256 leaves become complete as a tree of `low` leaves grows to `high`: from, up to."""
    return low >> _KEPT_LEVEL, high >> _KEPT_LEVEL


def _subtree(hashes: bytes) -> bytes:
    level = [hashes[at : at + HASH_SIZE] for at in range(0, len(hashes), HASH_SIZE)]
    while len(level) > 1:
        level = pairs_hashed(level)
    return level[0]


def _slot(hashes: bytearray, index: int) -> bytes:
    if not 0 <= index < len(hashes) // HASH_SIZE:
        raise IndexError(f"no hash number {index}")
    return bytes(hashes[index * HASH_SIZE : (index + 1) * HASH_SIZE])
