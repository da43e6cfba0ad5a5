"""It is responsible for what the ledger logs of its own work: which keys sign, what was sealed, what was witnessed.

With it the log by itself says under which keys its heads and seals stand, how its files were cut, and whom else its
heads have convinced. Nothing is decided by these entries: whoever reads them holds them against keysets and tree.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from libs.events.records import SALT_SIZE, parse_entry
from libs.transparency.leaf import Kind
from services.ledger.checkpoints.auditing import SignedTree
from services.ledger.growth import Growth
from services.ledger.storage import sealed
from services.ledger.storage.sealed import Sealed
from services.ledger.storage.segment_files import SegmentFile, path_of
from services.ledger.storage.segment_index import SegmentIndex
from services.ledger.storage.store import LogStore

WITNESS_SECONDS = 3600.0
"""How long between two entries about cosignatures: each is a leaf for ever."""


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The keys of this process, raw Ed25519."""

    acknowledgement: bytes
    checkpoint: bytes


class WitnessedTrees(Protocol):
    """The trees that a quorum of witnesses cosigns."""

    async def witnessed_beyond(self, size: int) -> SignedTree:
        """Wait until a tree of more than `size` leaves is witnessed, and return the newest."""
        ...


class Sayings(Protocol):
    """Where the ledger says it. Each IS durable in the outbox when the method returns, if there was room."""

    async def keys(self, epoch: int, keys: SigningKeys) -> None: ...

    async def seal(self, segment: Sealed) -> None: ...

    async def witnessed(self, note: bytes) -> None: ...


class Announcing:
    """One writer's announcements."""

    def __init__(
        self,
        store: LogStore,
        growth: Growth,
        trees: WitnessedTrees,
        own: Sayings,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._growth = growth
        self._trees = trees
        self._own = own
        self._pause = pause

    async def begin(self, epoch: int, keys: SigningKeys) -> None:
        """Say under which keys this writer signs, unless the log says so last."""
        said = self._last(Kind.LOGKEY)
        if said is None or (said["ack_key"], said["checkpoint_key"]) != (
            keys.acknowledgement.hex(),
            keys.checkpoint.hex(),
        ):
            await self._own.keys(epoch, keys)

    async def keep_seals(self) -> NoReturn:
        """Say of each segment that it is sealed, those included that the process before sealed as it stopped."""
        said = self._last(Kind.SEAL)
        told = 0 if said is None else said["first"] + said["count"]
        while True:
            size = self._growth.size
            files = self._store.index.files
            if files and files[-1].end > told:
                for each in (each for each in files if each.end > told):
                    await self._own.seal(await asyncio.to_thread(self._sealed, each))
                told = files[-1].end
            await self._growth.beyond(size)

    async def keep_witnessed(self) -> NoReturn:
        """Say once an hour what a quorum of witnesses has cosigned, if the log has grown by more than that."""
        size = 0
        while True:
            tree = await self._trees.witnessed_beyond(size)
            await self._own.witnessed(tree.note)
            # What says so is a leaf too, and must not be the reason for another.
            size = tree.size + 1
            await self._pause(WITNESS_SECONDS)

    def _last(self, kind: Kind) -> dict[str, Any] | None:
        newest = deque(self._store.index.of_kinds((kind,)), maxlen=1)
        if not newest:
            return None
        return dict(parse_entry(self._store.reader.entry(newest[0]).row.body[SALT_SIZE:]).body)

    def _sealed(self, found: SegmentIndex) -> Sealed:
        bare = self._store.bare
        path = path_of(self._store.directory, found.first, bare)
        read = sealed.read(SegmentFile(path, found.first, is_bare=found.first in bare))
        if read is None:
            raise ValueError(f"{path.name} is sealed, and its ends cannot be read")
        return read
