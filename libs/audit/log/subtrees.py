"""It is responsible for roots over parts of a log's leaves, from its segments: what proofs are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from libs.audit.log.findings import Findings
from libs.audit.log.frames import Frame
from libs.audit.log.place import Place
from libs.audit.log.tree import Frontier
from libs.audit.log.walk import Located, LogSource, Walk

_NO_ROWS: Sequence[int] = ()


def roots_over(
    source: LogSource, origin: str, block_leaves: int, ranges: Sequence[tuple[int, int]]
) -> tuple[bytes, ...]:
    """Return the root over each range of leaves, as a log that was read without damage has them."""
    parts = [Frontier() for _ in ranges]

    def take(located: Located) -> None:
        first, leaves = located.frame.header.first, located.frame.leaf_hashes
        for part, (low, high) in zip(parts, ranges, strict=True):
            part.add(leaves[max(low - first, 0) : max(high - first, 0)])

    Walk(source, Place(origin, block_leaves), Findings(), _no_rows, take).run()
    return tuple(part.root() for part in parts)


def _no_rows(frame: Frame) -> Iterable[int]:
    return _NO_ROWS
