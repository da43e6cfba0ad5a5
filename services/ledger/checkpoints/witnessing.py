"""It is responsible for having the log witnessed: each signed tree shown to every witness, and what comes of it.

What one of them says is not believed: a cosignature verifies or does not count, and who claims another history must
show it under its own signature.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from libs.errors import MeshError
from libs.transparency import checkpoint as checkpoints
from libs.transparency.add_checkpoint import AddCheckpoint, AddKey
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cosignature import attach, verify_quorum
from libs.transparency.note import Signature
from services.ledger.checkpoints.auditing import Checkpoints, SignedTree
from services.ledger.checkpoints.proofs import Consistency
from services.ledger.checkpoints.split_view import SplitView
from services.ledger.checkpoints.witnesses import Witness, WitnessAhead, WitnessContradicts, WitnessKnowsNoKey
from services.ledger.storage.damage import LogForked

LAG_SECONDS = 60.0

log = structlog.get_logger()


class History(Protocol):
    """The log's own tree, as far as it is durable."""

    @property
    def size(self) -> int: ...

    def root(self, size: int) -> bytes: ...

    def consistency(self, first: int, second: int) -> Consistency: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom to ask, how many must agree, and how often."""

    witnesses: Sequence[Witness]
    quorum: int
    interval_seconds: float


class Witnessing:
    """Collects cosignatures."""

    def __init__(
        self,
        asked: Asked,
        checkpoints: Checkpoints,
        history: History,
        attest: Callable[[AddCheckpoint], AddKey],
        keep: Callable[[SplitView], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`attest` puts this ledger's evidence beside a request; `keep` keeps evidence of a split view, durably."""
        self._asked = asked
        self._checkpoints = checkpoints
        self._history = history
        self._attest = attest
        self._keep = keep
        self._clock = clock
        self._cosigned = {witness.name: 0 for witness in asked.witnesses}
        self._behind_since: float | None = None
        self._told_at: float | None = None

    async def keep(self) -> None:
        """Have the newest tree witnessed whenever there is one, for ever. Raises `LogForked`, or `AuditorRefused`."""
        witnessed = 0
        while self._asked.witnesses:
            tree = await self._checkpoints.signed_beyond(witnessed)
            if await self._witness(tree):
                witnessed = tree.size
            self._watch_lag(tree.size > witnessed)
            await asyncio.sleep(self._asked.interval_seconds)

    async def _witness(self, tree: SignedTree) -> bool:
        """Show one tree to everybody at once; say whether enough cosigned it."""
        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(self._ask(witness, tree)) for witness in self._asked.witnesses]
        note = attach(tree.note, [line for each in asking if (line := each.result()) is not None])
        try:
            verify_quorum(note, [witness.key for witness in self._asked.witnesses], self._asked.quorum)
        except MeshError as error:
            log.warning("not witnessed", size=tree.size, reason=error.reason, detail=str(error))
            return False
        await self._checkpoints.witness(SignedTree(tree.size, tree.root, note))
        return True

    async def _ask(self, witness: Witness, tree: SignedTree) -> Signature | None:
        """Return a witness's line, or nothing where it is away or mistaken. Raises `LogForked`."""
        try:
            return await self._submit(witness, tree)
        except (WitnessAhead, WitnessContradicts) as error:
            await self._examine(witness, tree, error)
        except MeshError as error:
            log.warning("a witness does not cosign", witness=witness.name, reason=error.reason, detail=str(error))
        return None

    async def _submit(self, witness: Witness, tree: SignedTree) -> Signature:
        try:
            line = await self._send(witness, tree, self._cosigned[witness.name])
        except WitnessAhead as error:
            if error.size > tree.size:
                raise
            line = await self._send(witness, tree, error.size)
        self._cosigned[witness.name] = tree.size
        return line

    async def _send(self, witness: Witness, tree: SignedTree, old: int) -> Signature:
        request = AddCheckpoint(old, self._history.consistency(old, tree.size).path, tree.note)
        try:
            return await witness.add_checkpoint(request)
        except WitnessKnowsNoKey:
            return await witness.add_key(self._attest(request))

    async def _examine(self, witness: Witness, tree: SignedTree, claim: MeshError) -> None:
        """Look at what the witness has instead of our tree. Raises `LogForked` for another history than ours."""
        try:
            shown = await witness.newest(checkpoints.parse(tree.note).origin)
            ours = shown is None or self._is_ours(checkpoints.parse(shown))
        except MeshError as error:
            # Nor is it one if it cannot be compared: what is derived of this log may be damaged.
            log.error("a witness claims another history and shows none", witness=witness.name, detail=str(error))
            return
        if shown is None or ours:
            log.error("a witness claims another history, but has ours", witness=witness.name, detail=str(claim))
            return
        kept = SplitView(tree.note, shown, witness.key.text())
        await self._keep(kept)
        raise LogForked(f"{witness.name} has cosigned another history of this log; both notes are in {kept.name}")

    def _is_ours(self, theirs: Checkpoint) -> bool:
        return theirs.size <= self._history.size and self._history.root(theirs.size) == theirs.root

    def _watch_lag(self, behind: bool) -> None:
        now = self._clock()
        if not behind:
            self._behind_since = self._told_at = None
            return
        if self._behind_since is None:
            self._behind_since = now
        if now - self._behind_since > LAG_SECONDS and (self._told_at is None or now - self._told_at > LAG_SECONDS):
            self._told_at = now
            log.error("nothing was witnessed for a while", seconds=int(now - self._behind_since))
