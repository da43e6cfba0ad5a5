"""It is responsible for counts that become entries once an hour: nothing that was counted is lost or logged twice.

What cannot be written now is written with what comes until the next entry; whose vault does not open holds up nobody
else. A stop lets a write that has begun come to its end, then writes the rest. A router that is killed has not written
its last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count
from typing import Any, Generic, NoReturn, Protocol, Self, TypeVar

import structlog

from libs.errors import MeshError
from libs.events.publish import Enqueued
from libs.events.vault import VaultKey
from libs.events.vault_opening import OPENING_SECONDS, open_each
from libs.transparency.leaf import Kind

PERIOD_SECONDS = 3600.0
ROUND_SECONDS = 300.0
STOPPING_SECONDS = 10.0

log = structlog.get_logger()


class Log(Protocol):
    """What of a publisher is needed."""

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None) -> Enqueued:
        """Return when the entry is durable here. Raises `OutboxFull`. If this is cancelled, the entry MUST be logged
        all the same: it is not counted again.
        """
        ...


class Tally(Protocol):
    """What one entry is to say."""

    def body(self, until: int) -> dict[str, Any]:
        """Return the entry's body. `until` is in Unix seconds."""
        ...

    def add(self, other: Self) -> None:
        """Take in what was counted before this."""
        ...


T = TypeVar("T", bound=Tally)

Keep = Callable[[VaultKey, bytes, Mapping[str, Any]], Awaitable[None]]
"""Keeps a copy of an entry's body, by the vault that it lies in and its id. Raises a `MeshError` if it cannot."""


class Hourly(Generic[T]):
    """The counts since the last entries, by whose they are. Who counts bounds how many there are."""

    def __init__(
        self,
        log: Log,
        kind: Kind,
        begin: Callable[[int], T],
        vault: Callable[[str], Awaitable[VaultKey | None]],
        keep: Keep | None = None,
        clock: Callable[[], float] = time.time,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        stopping_seconds: float = STOPPING_SECONDS,
        round_seconds: float = ROUND_SECONDS,
        opening_seconds: float = OPENING_SECONDS,
    ) -> None:
        """`begin` returns a tally of nothing since a time, Unix seconds; `vault` returns what seals somebody's entries,
        None for what lies open. One vault may take `opening_seconds` to open, all of an hour's entries `round_seconds`,
        and the rest at a stop `stopping_seconds`.
        """
        self._log = log
        self._kind = kind
        self._begin = begin
        self._vault = vault
        self._keep_copy = keep
        self._clock = clock
        self._pause = pause
        self._stopping_seconds = stopping_seconds
        self._round_seconds = round_seconds
        self._opening_seconds = opening_seconds
        self._tallies: dict[str, T] = {}
        self._shut: dict[str, int] = {}
        """Whose vaults did not open when they were last tried, and in which order. Each of them has a tally."""
        self._tries = count(1)

    def of(self, whose: str) -> T:
        """Return where somebody is counted. It MUST be used before anything is awaited."""
        tally = self._tallies.get(whose)
        if tally is None:
            tally = self._tallies[whose] = self._begin(int(self._clock()))
        return tally

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Write the entries every hour while the body runs, and the rest at its end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(self._keep(tasks))
                try:
                    yield
                finally:
                    keeping.cancel()
        finally:
            # After the group: what was being written is written, or has been put back.
            await self._finish()

    async def _finish(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._stopping_seconds), asyncio.TaskGroup() as tasks:
                await self._record(tasks)
        if self._tallies:
            log.error("what was counted is not logged", kind=self._kind.name.lower(), number=len(self._tallies))

    async def _keep(self, tasks: asyncio.TaskGroup) -> NoReturn:
        while True:
            await self._pause(PERIOD_SECONDS)
            with suppress(TimeoutError):  # Whose turn has not come is among the first the next time.
                async with asyncio.timeout(self._round_seconds):
                    await self._record(tasks)

    async def _record(self, tasks: asyncio.TaskGroup) -> None:
        # Vaults that are likely to keep others waiting come last, and of them those first that have waited longest.
        waiting = sorted(self._tallies, key=lambda whose: self._shut.get(whose, 0))
        await open_each(waiting, self._vault, partial(self._take, tasks), seconds=self._opening_seconds)

    async def _take(self, tasks: asyncio.TaskGroup, whose: str, vault: VaultKey | MeshError | None) -> None:
        self._shut.pop(whose, None)
        if not isinstance(vault, MeshError):
            # A task of its own, for which a stop waits: half of it would be an entry without its copy.
            await asyncio.shield(tasks.create_task(self._write(whose, self._tallies.pop(whose), vault)))
        elif vault.reason == "VAULT_ERASED":
            del self._tallies[whose]  # Nobody could read it.
        else:
            self._shut[whose] = next(self._tries)
            self._warn(whose, vault)

    async def _write(self, whose: str, tally: T, vault: VaultKey | None) -> None:
        body = tally.body(int(self._clock()))
        try:
            enqueued = await self._log.enqueue(self._kind, body, vault=vault)
        except MeshError as error:
            self._put_back(whose, tally)
            self._warn(whose, error)
            return
        if vault is None or self._keep_copy is None:
            return
        try:
            await self._keep_copy(vault, enqueued.entry_id, body)
        except MeshError as error:
            log.error("what was counted is in the ledger alone", whose=whose, reason=error.reason)

    def _warn(self, whose: str, error: MeshError) -> None:
        kind = self._kind.name.lower()
        log.warning("what was counted is not logged yet", kind=kind, whose=whose, reason=error.reason)

    def _put_back(self, whose: str, tally: T) -> None:
        meanwhile = self._tallies.setdefault(whose, tally)
        if meanwhile is not tally:
            meanwhile.add(tally)
