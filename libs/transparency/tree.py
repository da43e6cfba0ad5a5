"""A log's tree in memory: every leaf hash, and every complete subtree of 256 leaves and more.

Nodes below 256 leaves are hashed again when a proof needs them (at most 255 hashes each), which keeps the tree at 33
bytes a leaf.
"""

from __future__ import annotations

from libs.transparency.merkle import HASH_SIZE, CompactRange, node_hash, root

_KEPT_LEVEL = 8
_KEPT_MASK = (1 << _KEPT_LEVEL) - 1


class Tree:
    """Grows at its end only. Implements `merkle.NodeReader`."""

    __slots__ = ("_kept", "_leaves")

    def __init__(self) -> None:
        self._leaves = bytearray()
        self._kept: list[bytearray] = []

    @property
    def size(self) -> int:
        return len(self._leaves) // HASH_SIZE

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        self._leaves += leaf
        if not self.size & _KEPT_MASK:
            self._keep(self._from_leaves(_KEPT_LEVEL, (self.size >> _KEPT_LEVEL) - 1))

    def leaf(self, index: int) -> bytes:
        """Return one leaf hash. Raises `IndexError` beyond the tree."""
        return _slot(self._leaves, index)

    def node(self, level: int, index: int) -> bytes:
        if level >= _KEPT_LEVEL:
            return _slot(self._kept[level - _KEPT_LEVEL], index)
        return self._from_leaves(level, index) if level else self.leaf(index)

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first `size` leaves, or of all."""
        return root(self, self.size if size is None else size)

    def _from_leaves(self, level: int, index: int) -> bytes:
        complete = CompactRange()
        for leaf in range(index << level, (index + 1) << level):
            complete.append(_slot(self._leaves, leaf))
        return complete.root()

    def _keep(self, subtree: bytes) -> None:
        for kept in self._kept:
            kept += subtree
            if len(kept) // HASH_SIZE & 1:
                return
            subtree = node_hash(bytes(kept[-2 * HASH_SIZE : -HASH_SIZE]), subtree)
        self._kept.append(bytearray(subtree))


def _slot(hashes: bytearray, index: int) -> bytes:
    if not 0 <= index < len(hashes) // HASH_SIZE:
        raise IndexError(f"no hash number {index}")
    return bytes(hashes[index * HASH_SIZE : (index + 1) * HASH_SIZE])
