"""RFC 6962 Merkle trees: hashes, roots, audit paths, and their verification.

Proofs are built over a `NodeReader`, which knows complete subtrees, so that memory, tile files and network can each
serve them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Protocol

from libs.errors import Code, MeshError

EMPTY_ROOT = sha256(b"").digest()
HASH_SIZE = 32


class ProofInvalid(MeshError):
    """An audit path does not lead to the root it was given for."""

    code = Code.INVALID_ARGUMENT
    reason = "PROOF_INVALID"


class SizeNotReached(MeshError):
    """A proof was asked for in a tree that is larger than the log, or for a leaf outside that tree."""

    code = Code.OUT_OF_RANGE
    reason = "SIZE_NOT_REACHED"


class NodeReader(Protocol):
    """Whoever knows the hashes of a tree's complete subtrees."""

    def node(self, level: int, index: int) -> bytes:
        """Return the root of the leaves `index << level` up to, not including, `(index + 1) << level`."""
        ...


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf (RFC 6962 section 2.1)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (RFC 6962 section 2.1)."""
    return sha256(b"\x01" + left + right).digest()


def pairs_hashed(nodes: Sequence[bytes]) -> list[bytes]:
    """Return the nodes above: of the first two, the next two, and so on. One without a partner is left out."""
    return [sha256(b"\x01" + left + right).digest() for left, right in zip(nodes[::2], nodes[1::2], strict=False)]


class CompactRange:
    """The roots of the complete subtrees that make up a tree of some size: all that appending needs."""

    __slots__ = ("_peaks", "_size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self._size = size
        self._peaks = list(peaks)
        if len(self._peaks) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} peaks")

    @property
    def size(self) -> int:
        return self._size

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The subtrees' roots, largest first."""
        return tuple(self._peaks)

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaf hashes."""
        nodes, before = list(leaves), self._size
        self._size += len(nodes)
        higher, alone = self._peaks, []
        # Level by level: `nodes` are the new ones of a level, and there were `before` of that level already.
        while nodes:
            if before & 1:
                nodes.insert(0, higher.pop())
            if len(nodes) & 1:
                alone.append(nodes.pop())
            nodes = pairs_hashed(nodes)
            before >>= 1
        self._peaks = higher + alone[::-1]

    def root(self) -> bytes:
        return _fold(self._peaks)

    def copy(self) -> CompactRange:
        return CompactRange(self._size, self._peaks)


class CompleteTree:
    """Every node of a small tree, for when all its leaves need a path. Implements `NodeReader`."""

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        """`leaves` are the hashes of one leaf or more."""
        self._levels = [list(leaves)]
        while len(below := self._levels[-1]) > 1:
            above = pairs_hashed(below)
            # A subtree without a sibling is itself the node above.
            self._levels.append([*above, below[-1]] if len(below) & 1 else above)

    @property
    def root(self) -> bytes:
        return self._levels[-1][0]

    def node(self, level: int, index: int) -> bytes:
        return self._levels[level][index]

    def paths(self) -> list[tuple[bytes, ...]]:
        """Return the audit path of each leaf, as `inclusion_path` does: what two leaves share is put together once."""
        above: list[tuple[bytes, ...]] = [()]
        for level in reversed(self._levels[:-1]):
            # Node and sibling change places; the last one of an odd number has none.
            swapped = [each for pair in zip(level[1::2], level[::2], strict=False) for each in pair]
            paths = [(sibling, *above[at >> 1]) for at, sibling in enumerate(swapped)]
            above = [*paths, above[-1]] if len(level) & 1 else paths
        return above


def root_of(leaves: Iterable[bytes]) -> bytes:
    """Return the root over leaf hashes."""
    grown = CompactRange()
    grown.extend(leaves)
    return grown.root()


def root(nodes: NodeReader, size: int) -> bytes:
    """Return the root of the first `size` leaves."""
    return range_root(nodes, 0, size)


def inclusion_path(nodes: NodeReader, index: int, size: int) -> list[bytes]:
    """Return the audit path of one leaf (RFC 6962 section 2.1.1), lowest first. Raises `SizeNotReached`."""
    if not 0 <= index < size:
        raise SizeNotReached(f"leaf {index} is not in a tree of {size} leaves")
    low, high, path = 0, size, []
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(range_root(nodes, middle, high))
            high = middle
        else:
            path.append(range_root(nodes, low, middle))
            low = middle
    path.reverse()
    return path


def consistency_path(nodes: NodeReader, first: int, second: int) -> list[bytes]:
    """Return the proof that the larger tree extends the smaller (RFC 6962 section 2.1.2). Raises `SizeNotReached`."""
    if not 0 <= first <= second:
        raise SizeNotReached(f"a tree of {first} leaves is not within one of {second}")
    if first in (0, second):
        return []
    low, high, path = 0, second, []
    while first != high:
        middle = low + _split(high - low)
        if first <= middle:
            path.append(range_root(nodes, middle, high))
            high = middle
        else:
            path.append(range_root(nodes, low, middle))
            low = middle
    if low:
        # The verifier knows the smaller root only where it is itself a node of the larger tree.
        path.append(range_root(nodes, low, high))
    path.reverse()
    return path


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], tree_root: bytes) -> None:
    """Prove that a leaf hash is at `index` of the tree with this root (RFC 9162 2.1.3.2). Raises `ProofInvalid`."""
    if root_from_path(leaf, index, size, path) != tree_root:
        raise ProofInvalid("the audit path leads to another root")


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that an audit path leads to. Raises `ProofInvalid` for a path of the wrong shape."""
    if not 0 <= index < size or any(len(step) != HASH_SIZE for step in path) or len(leaf) != HASH_SIZE:
        raise ProofInvalid("the leaf is outside the tree, or a hash has the wrong length")
    node, last, result = index, size - 1, leaf
    for step in path:
        if last == 0:
            raise ProofInvalid("the audit path is too long")
        if node & 1 or node == last:
            result = node_hash(step, result)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            result = node_hash(result, step)
        node, last = node >> 1, last >> 1
    if last:
        raise ProofInvalid("the audit path is too short")
    return result


def verify_consistency(first: int, second: int, path: Sequence[bytes], first_root: bytes, second_root: bytes) -> None:
    """Prove that the tree of `second` leaves extends that of `first` (RFC 9162 2.1.4.2). Raises `ProofInvalid`.

    Every tree extends the empty one; the path is then empty, as C2SP's witness protocol has it.
    """
    if not 0 <= first <= second or any(len(step) != HASH_SIZE for step in path):
        raise ProofInvalid("the sizes are in the wrong order, or a hash has the wrong length")
    if first in (0, second):
        if path or first_root != (second_root if first else EMPTY_ROOT) or (not second and second_root != EMPTY_ROOT):
            raise ProofInvalid("trees of these sizes need an empty path and the right roots")
        return
    steps = list(path) if first & (first - 1) else [first_root, *path]
    if not steps:
        raise ProofInvalid("the consistency path is empty")
    node, last = first - 1, second - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise ProofInvalid("the consistency path is too long")
        if node & 1 or node == last:
            old, new = node_hash(step, old), node_hash(step, new)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, step)
        node, last = node >> 1, last >> 1
    if last or old != first_root or new != second_root:
        raise ProofInvalid("the consistency path leads to other roots")


def _split(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << (width - 1).bit_length() - 1


def range_root(nodes: NodeReader, low: int, high: int) -> bytes:
    """Return the root over some leaves; `low` is a multiple of the largest power of two not above their number."""
    return _fold([nodes.node(level, low_leaf >> level) for low_leaf, level in complete_subtrees(low, high)])


def complete_subtrees(low: int, high: int) -> Iterator[tuple[int, int]]:
    """Yield (first leaf, level) of the largest complete subtrees that cover the range, left to right.

    `low` is a multiple of the first one's width, as in every range that RFC 6962 proofs name.
    """
    while low < high:
        level = (high - low).bit_length() - 1
        yield low, level
        low += 1 << level


def _fold(peaks: Sequence[bytes]) -> bytes:
    if not peaks:
        return EMPTY_ROOT
    result = peaks[-1]
    for peak in reversed(peaks[:-1]):
        result = node_hash(peak, result)
    return result
