"""It is responsible for reading the log out: from any place to its end and on, and for noticing a log rolled back.

A reader is a place in the files, not a queue: one that reads slowly costs nothing and loses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from functools import partial

from libs.errors import Code, MeshError
from libs.transparency import resume
from libs.transparency.resume import LogDiverged, Position, ResumeTokenInvalid
from services.ledger.checkpoints.auditing import Checkpoints
from services.ledger.growth import Growth
from services.ledger.keys import KeySource, ReleasedKey
from services.ledger.serving.whole import AreOpen, WholeFrames
from services.ledger.storage.reading import StoredEntry, WholeFrame
from services.ledger.storage.selection import Selection
from services.ledger.storage.store import LogStore

KEY_NAME = "ledger-resume"
HEARTBEAT_SECONDS = 10.0
MAX_BATCH = 256
DEFAULT_BATCH = 64
_MAX_BYTES = 64 * 1024
"""How much one batch may hold, beyond one entry: what waits for a reader that stands still takes several times that."""
_MOST_PASSED = 1 << 18
"""How many places a reader of few entries passes over at once, so that its signs of life come in time."""
_ALL = Selection()


class FramesNotSelectable(MeshError):
    """A frame holds entries of every kind, vault and issuer: who selects is given entries."""

    code = Code.INVALID_ARGUMENT
    reason = "FRAMES_NOT_SELECTABLE"


@dataclass(frozen=True, slots=True)
class TailBatch:
    """What follows a position, as entries or as frames; with neither it is a sign of life."""

    entries: tuple[StoredEntry, ...]
    chain_after: bytes
    token: bytes
    checkpoint: bytes
    log_size: int
    frames: tuple[bytes, ...] = ()
    """The first one may begin before the position."""


class Tail:
    """Reads of one log."""

    def __init__(
        self, store: LogStore, growth: Growth, checkpoints: Checkpoints, keys: KeySource, resume_key: ReleasedKey
    ) -> None:
        self._store = store
        self._growth = growth
        self._checkpoints = checkpoints
        self._keys = keys
        self._key = resume_key
        self._whole = WholeFrames(store)

    async def from_index(self, index: int) -> Position:
        """Return the position at a leaf. Raises `LogDiverged` beyond the log, or `LogBehind`."""
        if index > self._growth.size:
            self._growth.require_all()
            raise LogDiverged(f"the log has {self._growth.size} leaves, not {index}")
        return Position(index, await asyncio.to_thread(self._store.reader.chain_at, index))

    async def from_token(self, token: bytes) -> Position:
        """Return the position in a token. Raises `ResumeTokenInvalid`, `LogBehind`, or `LogDiverged` where the log is
        another.
        """
        key = await self._key_of(resume.key_epoch(token))
        position = resume.verify(token, log_id=self._store.log_id, key=key)
        size = self._growth.size
        chain = None
        if position.next_index <= size:
            chain = await asyncio.to_thread(self._store.reader.chain_at, position.next_index)
        else:
            self._growth.require_all()
        resume.verify_extends(position, size=size, chain=chain)
        return position

    async def read(
        self,
        position: Position,
        *,
        follow: bool,
        max_batch: int,
        selection: Selection = _ALL,
        are_open: AreOpen | None = None,
    ) -> AsyncGenerator[TailBatch, None]:
        """Yield the entries after a position; with `follow` go on as the log grows.

        Raises `FramesNotSelectable`, `LogDamaged`, or `LogBehind` where this member hears of no growth any more.

        Only selected entries come; the places in the log move over the others all the same. With `are_open` whole
        frames come instead of entries where they may.
        """
        if are_open is not None and not selection.is_all:
            raise FramesNotSelectable("whole frames are of all entries: ask for them without a selection")
        loop = asyncio.get_running_loop()
        told: Position | None = None
        entries_until = 0
        silent_until = loop.time() + HEARTBEAT_SECONDS
        while True:
            while position.next_index < self._growth.size:
                if are_open is not None and position.next_index >= entries_until:
                    taken = await self._whole.take(position.next_index, self._growth.size, are_open)
                    entries_until = taken.entries_until
                    if taken.frames:
                        position = told = Position(taken.frames[-1].end, taken.frames[-1].chain_after)
                        with self._whole.waiting(taken.frames):
                            yield self._batch((), position, taken.frames)
                        silent_until = loop.time() + HEARTBEAT_SECONDS
                        continue
                read = self._some if selection.is_all else partial(self._selected, selection)
                entries, position = await asyncio.to_thread(read, position, self._growth.size, max_batch)
                if entries or loop.time() >= silent_until:
                    yield self._batch(entries, position)
                    told, silent_until = position, loop.time() + HEARTBEAT_SECONDS
            if told is None or not (follow or told == position):
                # Where there is nothing to send, the reader still learns where the log stands.
                yield self._batch((), position)
                told = position
            if not follow:
                return
            try:
                async with asyncio.timeout_at(silent_until):
                    await self._news(selection, position)
            except TimeoutError:
                self._growth.require_told()
                if position.next_index == self._growth.size:
                    yield self._batch((), position)
                    told, silent_until = position, loop.time() + HEARTBEAT_SECONDS

    async def _news(self, selection: Selection, position: Position) -> None:
        """Wait until something selected may follow a position.

        For who selects, what a commit brought is looked up first: most commits have nothing for most readers, and to
        read for each of them would cost more than the commit. Such a reader's place moves with its next sign of life.
        """
        seen = position.next_index
        while True:
            await self._growth.beyond(seen)
            if selection.is_all or not self._store.index.selects_nothing_new(selection, seen):
                return
            seen = self._growth.size

    def _some(self, position: Position, size: int, max_batch: int) -> tuple[tuple[StoredEntry, ...], Position]:
        """Return the entries that follow a position, and the place after them."""
        end = min(position.next_index + max_batch, size)
        taken, _ = _fitting(self._store.reader.entries(position.next_index, end), max_batch, end)
        return taken, self._moved(position, position.next_index + len(taken))

    def _selected(
        self, selection: Selection, position: Position, size: int, max_batch: int
    ) -> tuple[tuple[StoredEntry, ...], Position]:
        """Return selected entries that follow a position, and the place up to which there are no others."""
        end = min(position.next_index + _MOST_PASSED, size)
        found = self._store.index.selected(selection, position.next_index, end)
        taken, end = _fitting(map(self._store.reader.entry, found), max_batch, end)
        return taken, self._moved(position, end)

    def _moved(self, position: Position, index: int) -> Position:
        """Return a later place. The entries up to it that were read ARE verified against the tree."""
        return Position(index, self._store.reader.chain_on(position.chain, position.next_index, index))

    def _batch(
        self, entries: tuple[StoredEntry, ...], position: Position, frames: tuple[WholeFrame, ...] = ()
    ) -> TailBatch:
        token = resume.seal(position, log_id=self._store.log_id, key_epoch=self._key.epoch, key=self._key.key)
        whole = tuple(frame.data for frame in frames)
        return TailBatch(entries, position.chain, token, self._checkpoints.note(), self._growth.size, whole)

    async def _key_of(self, epoch: int) -> bytes:
        if epoch == self._key.epoch:
            return self._key.key
        if not 1 <= epoch < self._key.epoch:
            # Asking the KMS for what cannot exist would let anyone make it work.
            raise ResumeTokenInvalid("the resume token is not this log's")
        try:
            return (await self._keys.release(KEY_NAME, epoch)).key
        except MeshError as error:
            raise ResumeTokenInvalid(f"the resume token's key cannot be had: {error.reason}") from error


def _fitting(entries: Iterable[StoredEntry], most: int, end: int) -> tuple[tuple[StoredEntry, ...], int]:
    """Take what one message holds of the entries before `end`; return it and the index of the first not taken."""
    taken: list[StoredEntry] = []
    size = 0
    for stored in entries:
        size += len(stored.row.body)
        if len(taken) == most or (taken and size > _MAX_BYTES):
            return tuple(taken), stored.index
        taken.append(stored)
    return tuple(taken), end
