"""It is responsible for what a majority of the members holds of the writer's log, and for telling who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.ledger.replication.frame_files import FrameEnd
from services.ledger.replication.keyring_copy import NO_KEYRING, KeyringCopy


class Majority:
    """What each member is known to hold durably. For use on the event loop alone."""

    def __init__(self, members: Sequence[str]) -> None:
        """`members` are all of them, the writer too."""
        self._count = len(members) // 2 + 1
        self._frames: dict[str, FrameEnd] = {}
        self._keyrings = dict.fromkeys(members, NO_KEYRING.version)
        self._first: FrameEnd | None = None
        self._grown = asyncio.Event()

    def begin(self, first: FrameEnd) -> None:
        """Name the writer's first own frame.

        Nothing counts before a majority holds that one: an older frame on a majority may still be replaced by a writer
        who never had it (Raft, section 5.4.2).
        """
        self._first = first
        self._tell()

    def holds(self, member: str, end: FrameEnd) -> None:
        """Take in how much of the writer's log a member holds now."""
        self._frames[member] = end
        self._tell()

    def has_keyring(self, member: str, version: tuple[int, int]) -> None:
        """Take in which keyring a member has now."""
        self._keyrings[member] = version
        self._tell()

    def held_by(self, member: str) -> int:
        """Return how many leaves a member is known to hold."""
        end = self._frames.get(member)
        return 0 if end is None else end.name.size

    @property
    def committed(self) -> FrameEnd | None:
        """The last frame that a majority holds; None as long as that is none of this writer's."""
        ends = sorted(self._frames.values(), reverse=True)
        if len(ends) < self._count or self._first is None or ends[self._count - 1] < self._first:
            return None
        return ends[self._count - 1]

    async def until_held(self, end: FrameEnd) -> None:
        """Wait until a majority holds a frame, and with it everything before."""
        while (committed := self.committed) is None or committed < end:
            await self._grown.wait()

    async def until_kept(self, keyring: KeyringCopy) -> None:
        """Wait until a majority has a keyring, or later ones."""
        await self._until_kept(keyring, self._count)

    async def until_kept_by_all(self, keyring: KeyringCopy) -> None:
        """Wait until every member has a keyring, or a later one."""
        await self._until_kept(keyring, len(self._keyrings))

    async def _until_kept(self, keyring: KeyringCopy, members: int) -> None:
        while sum(version >= keyring.version for version in self._keyrings.values()) < members:
            await self._grown.wait()

    def _tell(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()
