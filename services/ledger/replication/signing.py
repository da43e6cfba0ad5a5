"""It is responsible for what a member signs: while it follows the trees that the writer shows, then its own.

All members sign trees of the same sizes, so that what witnesses cosigned for the writer stands under each one's own
signature too. What is shown is not believed: this member signs what it holds itself, as far as a majority does, and
cosignatures count that the witnesses made who are configured here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from libs.errors import Code, MeshError
from libs.transparency import checkpoint as checkpoints
from libs.transparency import note as notes
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cosignature import CosignatureInvalid, CosignerKey, attach, verify_cosignature, verify_quorum
from services.ledger.checkpoints.auditing import AuditorRefused, Checkpoints, SignedTree
from services.ledger.checkpoints.witnessing import Asked, History
from services.ledger.growth import Growth
from services.ledger.storage.index import Index

_PATIENCE_SECONDS = 2.0
"""How long a tree is waited for: what the writer knows to count, this member hears of with the next frames."""


class TreeNotTaken(MeshError):
    """This member does not know yet that the tree counts, or signs nothing for others now: show it again."""

    code = Code.UNAVAILABLE
    reason = "TREE_NOT_TAKEN"


class TreeDiffers(MeshError):
    """What another member shows is no tree of this log."""

    code = Code.DATA_LOSS
    reason = "TREE_DIFFERS"


class Signing:
    """One member's, over its whole life."""

    def __init__(
        self,
        origin: str,
        signed_size: int,
        asked: Asked,
        index: Index,
        growth: Growth,
        history: History,
        checkpoints: Checkpoints,
        end: Callable[[MeshError], None],
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        """`signed_size` is of the largest tree that was signed here before; `end` has this process end."""
        self._origin = origin
        self._least = signed_size
        self._keys = [witness.key for witness in asked.witnesses]
        self._quorum = max(asked.quorum, 1)
        self._index = index
        self._growth = growth
        self._history = history
        self._checkpoints = checkpoints
        self._end = end
        self._patience = patience_seconds
        self._introduced = asyncio.Event()
        self._writes = False
        self._one_tree = asyncio.Lock()

    def begin(self) -> None:
        """Sign from now on: this member's own log says whose keys these are."""
        self._introduced.set()

    async def write(self) -> None:
        """Sign what this member writes, for ever, and nothing for others. Raises `AuditorRefused`, `AuditorGone`."""
        async with self._one_tree:
            self._writes = True
        await self._introduced.wait()
        await self._checkpoints.keep()

    async def take(self, note: bytes, *, witnessed: bool) -> None:
        """Sign a tree that another member shows; show it with its cosignatures from now on where it is `witnessed`.

        Raises `TreeNotTaken`, `TreeDiffers`, `QuorumNotReached`, what refuses a note and what keeps the tree from being
        read.
        """
        tree = checkpoints.parse(note)
        if witnessed:
            verify_quorum(note, self._keys, self._quorum)
        await self._require_held(tree)
        async with self._one_tree:
            if self._writes or not self._introduced.is_set():
                raise TreeNotTaken("this member writes itself, or its keys are not in the log yet")
            await self._sign(tree)
            if witnessed:
                await self._keep(tree, note)

    async def _require_held(self, tree: Checkpoint) -> None:
        if tree.origin != self._origin or tree.size == 0:
            raise TreeDiffers(f"a tree of {tree.size} leaves of {tree.origin} is none that {self._origin} signs")
        try:
            async with asyncio.timeout(self._patience):
                await self._growth.beyond(tree.size - 1)
        except TimeoutError as error:
            raise TreeNotTaken(f"a majority is known to hold {self._growth.size} leaves, not {tree.size}") from error
        if self._history.root(tree.size) != tree.root or not self._ends_frame(tree.size):
            raise TreeDiffers(f"the first {tree.size} leaves are not those of the tree that is shown")

    def _ends_frame(self, size: int) -> bool:
        return size == self._index.size or self._index.place(size - 1) != self._index.place(size)

    async def _sign(self, tree: Checkpoint) -> None:
        if tree.size < self._least:
            return
        # Before it is asked: the auditor goes on also if whoever showed the tree gives up, and signs none below then.
        self._least = tree.size + 1
        try:
            await self._checkpoints.sign(tree.size, tree.root)
        except AuditorRefused as error:
            self._end(error)
            raise

    async def _keep(self, tree: Checkpoint, note: bytes) -> None:
        """Keep the cosignatures, where this member has signed that very tree: else those of a later one."""
        own = self._checkpoints.of_size(tree.size)
        if not own or tree.size <= self._checkpoints.witnessed_size:
            return
        lines = {(line.name, line.key_id): line for line in notes.parse(note).signatures}
        # A reader may refuse a note for one line that is wrong.
        right = [lines[key.name, key.key_id] for key in self._keys if _has_cosigned(note, key)]
        await self._checkpoints.witness(SignedTree(tree.size, tree.root, attach(own, right)))


def _has_cosigned(note: bytes, key: CosignerKey) -> bool:
    try:
        verify_cosignature(note, key)
    except CosignatureInvalid:
        return False
    return True
