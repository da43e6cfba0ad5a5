"""It is responsible for giving one of the others what it lacks of the writer's log and keyring, until it has it all."""

from __future__ import annotations

import asyncio
from typing import NoReturn, Protocol

import structlog

from libs.errors import MeshError
from services.ledger.replication.exchange import Heading, Taken
from services.ledger.replication.frame_files import FrameEnd, FrameFiles
from services.ledger.replication.keyring_copy import KeyringCopy
from services.ledger.replication.majority import Majority
from services.ledger.replication.others import PIECE_BYTES, OtherMember
from services.ledger.replication.tenure import Tenure
from services.ledger.storage.damage import StoredLogError
from services.ledger.storage.frames import FrameDamaged

log = structlog.get_logger()


class Epoch(Protocol):
    """What there is to give in one writer's epoch, and what is made of the answers."""

    majority: Majority
    tenure: Tenure

    @property
    def files(self) -> FrameFiles: ...

    @property
    def end(self) -> FrameEnd:
        """Of what is to be given. It IS durable here."""

    @property
    def keyring(self) -> KeyringCopy: ...

    def heading(self, after: FrameEnd) -> Heading: ...

    def heard(self, instance: str, epoch: int, asked_at: float) -> None:
        """Take in an answer. Raises `WriterDeposed`."""


class Supply:
    """What one member has been given."""

    def __init__(self, epoch: Epoch, other: OtherMember, start: FrameEnd) -> None:
        self._epoch = epoch
        self._other = other
        self._at = start
        """The last frame that the member is believed to have."""
        self._keyring: KeyringCopy | None = None

    async def keep(self, wake: asyncio.Event, heartbeat_seconds: float) -> NoReturn:
        """Give for ever, as soon as `wake` says that there is more. Raises `LogDamaged`."""
        trouble = ""
        while True:
            wake.clear()
            try:
                more = await self.give()
                trouble = ""
            except StoredLogError:
                # Of this log, not the other member's: what cannot be read can be given to nobody.
                raise
            except MeshError as error:
                more = False
                if error.reason != trouble:
                    member, why = self._other.instance, str(error)
                    log.warning("a member does not follow", member=member, reason=error.reason, why=why)
                trouble = error.reason
            if not more:
                # One that does not answer is tried again at the next heartbeat, whatever there is to send.
                await _until_due(asyncio.Event() if trouble else wake, heartbeat_seconds)

    async def give(self) -> bool:
        """Give the next of what the member lacks, or a heartbeat; return whether it lacks more.

        Raises `MeshError`; `LogDamaged` where it is this log's frames that are not whole.
        """
        epoch, other = self._epoch, self._other
        if (keyring := epoch.keyring) is not self._keyring:
            asked_at = epoch.tenure.now()
            epoch.heard(other.instance, await other.keep_keyring(keyring), asked_at)
            epoch.majority.has_keyring(other.instance, keyring.version)
            self._keyring = keyring
        data, end = await asyncio.to_thread(epoch.files.read, self._at, epoch.end, PIECE_BYTES)
        asked_at = epoch.tenure.now()
        try:
            taken = await other.append(epoch.heading(self._at), data)
        except MeshError as error:
            if error.reason == FrameDamaged.reason:
                # Bodies are given as they are on this disk, unread. What is damaged here is refused for ever.
                await asyncio.to_thread(epoch.files.require_whole, self._at, end)
            raise
        epoch.heard(other.instance, taken.epoch, asked_at)
        if taken.held == end.name:
            self._at = end
            epoch.majority.holds(other.instance, end)
            return end.name != epoch.end.name
        return await self._meet(taken)

    async def _meet(self, taken: Taken) -> bool:
        """Go back to the last frame that both have."""
        for name in taken.recent:
            common = await asyncio.to_thread(self._epoch.files.find, name, self._epoch.end)
            if common is not None:
                self._at = common
                self._epoch.majority.holds(self._other.instance, common)
                # A log that was emptied has no keyring either.
                self._keyring = None
                return True
        if taken.recent:
            log.error("a member's log has nothing in common with this one", member=self._other.instance)
        return False


async def _until_due(wake: asyncio.Event, heartbeat_seconds: float) -> None:
    try:
        async with asyncio.timeout(heartbeat_seconds):
            await wake.wait()
    except TimeoutError:
        return
