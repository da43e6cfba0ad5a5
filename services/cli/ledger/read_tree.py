"""It is responsible for the tree of what a tail has read, and for holding it against a head that witnesses cosigned."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from libs.errors import MeshError
from libs.transparency import proof_file
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.merkle import CompactRange, leaf_hash
from libs.transparency.note import VerifierKey
from libs.transparency.proof_file import Proven
from libs.transparency.quorum import Quorum
from services.cli.ledger.prove import fetch_proof
from services.cli.ledger.tail_state import ChainBroken
from services.cli.mesh.service_access import ServiceAccess

_SETTLE_SECONDS = 20.0
"""How long cosignatures of what was just written may take."""
_BETWEEN_SECONDS = 0.5
_NOT_YET = frozenset({"QUORUM_NOT_REACHED", "SIZE_NOT_REACHED", "NO_CHECKPOINT"})


class TreeUnknown(MeshError):
    """The log was not read from its first entry on, so its tree is not known here: read it once with --from 0."""

    reason = "TREE_UNKNOWN"


class ReadTree:
    """Grows with each entry. Of what was begun in the middle, without the subtrees before, nothing is known."""

    def __init__(self, start: int, peaks: tuple[bytes, ...] | None) -> None:
        self._range = None if peaks is None else CompactRange(start, peaks)
        self._head: Checkpoint | None = None

    @property
    def peaks(self) -> tuple[bytes, ...] | None:
        """The subtrees' roots, for a later reading to go on with; None where they are not known."""
        return None if self._range is None else self._range.peaks

    @property
    def size(self) -> int:
        """Raises `TreeUnknown`."""
        if self._range is None:
            raise TreeUnknown("the log was not read from its first entry on: read it once with --from 0")
        return self._range.size

    def take(self, leaves: Iterable[bytes]) -> None:
        """Add leaf data. Raises `ChainBroken` where that leads to another tree than the one expected."""
        if self._range is None:
            return
        for leaf_data in leaves:
            self._range.append(leaf_hash(leaf_data))
            self._compare(self._range)

    def expect(self, head: Checkpoint) -> None:
        """Hold the tree against a head of at least its size, now or as soon as it has grown to it. Raises
        `ChainBroken`.
        """
        self._head = head
        if self._range is not None:
            self._compare(self._range)

    def _compare(self, grown: CompactRange) -> None:
        head = self._head
        if head is not None and grown.size == head.size and grown.root() != head.root:
            raise ChainBroken(f"the first {head.size} entries are not those that witnesses have cosigned")


async def witnessed_head(
    access: ServiceAccess,
    index: int,
    key: VerifierKey,
    quorum: Quorum,
    *,
    settle: float = _SETTLE_SECONDS,
    between: float = _BETWEEN_SECONDS,
) -> Proven:
    """Return a proof of an entry in a tree that a quorum cosigned, which may take a while.

    Raises `QuorumNotReached`, and what else refuses a proof.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settle
    while True:
        try:
            return proof_file.verify(await fetch_proof(access, index), key, quorum.keys, quorum.needed)
        except MeshError as error:
            if error.reason not in _NOT_YET or loop.time() + between > deadline:
                raise
        await asyncio.sleep(between)
