"""It is responsible for the Merkle tree of RFC 6962, by the definitions of its section 2.1 and no others."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from hashlib import sha256

from libs.errors import Code, MeshError

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()


class PathWrong(MeshError):
    """A path does not lead from the leaf, or from the smaller tree, to the root."""

    code = Code.DATA_LOSS
    reason = "MERKLE_PATH_WRONG"


def leaf_hash(data: bytes) -> bytes:
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: at each level the complete subtree that waits for its sibling."""

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        """Begin empty, or at a size whose complete subtrees, largest first, are known. Raises `PathWrong`."""
        if len(peaks) != size.bit_count():
            raise PathWrong(f"a tree of {size} leaves has {size.bit_count()} complete subtrees, not {len(peaks)}")
        smallest_first = iter(reversed(peaks))
        self.size = size
        self._waiting = [next(smallest_first) if size >> level & 1 else None for level in range(size.bit_length())]

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The complete subtrees, largest first."""
        return tuple(node for node in reversed(self._waiting) if node is not None)

    def copy(self) -> Frontier:
        return Frontier(self.size, self.peaks)

    def add(self, leaves: Sequence[bytes], keep: Container[int] = ()) -> dict[int, list[bytes]]:
        """Add leaf hashes. Returns the nodes that became complete at the levels in `keep`.

        It goes level by level: hashing many nodes in one go is what makes a reading fast.
        """
        self.size += len(leaves)
        kept: dict[int, list[bytes]] = {}
        level, nodes = 0, list(leaves)
        while nodes:
            if level in keep:
                kept[level] = list(nodes)
            if level == len(self._waiting):
                self._waiting.append(None)
            waiting = self._waiting[level]
            if waiting is not None:
                nodes.insert(0, waiting)
            self._waiting[level] = nodes.pop() if len(nodes) & 1 else None
            pairs = iter(nodes)
            nodes = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
            level += 1
        return kept

    def root(self) -> bytes:
        root: bytes | None = None
        for node in self._waiting:
            if node is not None:
                root = node if root is None else node_hash(node, root)
        return EMPTY_ROOT if root is None else root


def consistency_ranges(first: int, second: int) -> list[tuple[int, int]]:
    """Return over which leaves the roots are that prove a tree to extend a smaller one, in the proof's order."""
    return [] if first in (0, second) else list(_subproof(0, first, second, True))


def _subproof(start: int, first: int, width: int, is_known: bool) -> Iterator[tuple[int, int]]:
    if first == width:
        if not is_known:
            yield start, start + width
        return
    left = _left(width)
    if first <= left:
        yield from _subproof(start, first, left, is_known)
        yield start + left, start + width
    else:
        yield from _subproof(start + left, first - left, width - left, False)
        yield start, start + left


def verify_consistency(first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes) -> None:
    """Check that a root of `first` leaves is that of the beginning of the tree of `second`. Raises `PathWrong`."""
    if not 0 < first < second:
        raise PathWrong("the sizes are not those of a smaller and a larger tree")
    steps = list(reversed(proof))
    old, new = _both_roots(first, second, True, first_root, steps)
    if steps or old != first_root or new != second_root:
        raise PathWrong("the path leads to other roots")


def _both_roots(first: int, width: int, is_known: bool, first_root: bytes, steps: list[bytes]) -> tuple[bytes, bytes]:
    if first == width:
        same = first_root if is_known else _take(steps)
        return same, same
    left = _left(width)
    if first <= left:
        old, new = _both_roots(first, left, is_known, first_root, steps)
        return old, node_hash(new, _take(steps))
    old, new = _both_roots(first - left, width - left, False, first_root, steps)
    beside = _take(steps)
    return node_hash(beside, old), node_hash(beside, new)


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """Return which leaves' roots are the audit path of a leaf, lowest first."""
    return [] if size == 1 else list(_path(0, index, size))


def _path(start: int, index: int, width: int) -> Iterator[tuple[int, int]]:
    if width == 1:
        return
    left = _left(width)
    if index < left:
        yield from _path(start, index, left)
        yield start + left, start + width
    else:
        yield from _path(start + left, index - left, width - left)
        yield start, start + left


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf hash stands at an index of the tree with this root. Raises `PathWrong`."""
    if not 0 <= index < size:
        raise PathWrong(f"leaf {index} is not in a tree of {size}")
    steps = list(reversed(path))
    found = _root_above(leaf, index, size, steps)
    if steps or found != root:
        raise PathWrong("the path leads to another root")


def _root_above(leaf: bytes, index: int, width: int, steps: list[bytes]) -> bytes:
    if width == 1:
        return leaf
    left = _left(width)
    if index < left:
        below = _root_above(leaf, index, left, steps)
        return node_hash(below, _take(steps))
    below = _root_above(leaf, index - left, width - left, steps)
    return node_hash(_take(steps), below)


def _left(width: int) -> int:
    """The largest power of two below `width`."""
    return 1 << (width - 1).bit_length() - 1


def _take(steps: list[bytes]) -> bytes:
    if not steps or len(steps[-1]) != HASH_SIZE:
        raise PathWrong("the path is too short, or a hash has the wrong length")
    return steps.pop()
