"""It is responsible for the registry's view of all nodes: what the store holds now, and every change to it, in order.

The view is fed by the store alone, never by this process's own writes, so any number of registries show the same, under
the same numbers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass

import structlog

from libs.errors import Code, MeshError
from services.registry.following import POLL_SECONDS, Entry, Quiet, Whole, entries, for_ever
from services.registry.providers import Provider
from services.registry.store import Bucket, StoreConflict, StoreUnavailable
from services.registry.view import (
    HISTORY_KEY,
    Change,
    EpochEnded,
    History,
    HistoryMalformed,
    Position,
    View,
    decode_history,
    drain_key,
    lease_key,
    state_digest,
)

_BEAT_SECONDS = 10.0
_GATHER_SECONDS = 0.05
"""Every renewal is a change, and every message to every watcher costs: what comes within this time goes as one."""
_MAX_BACKLOG = 1024
_MAX_ENDED = 1000
"""So many names of nodes that are gone are remembered, for watchers that resume; then the older half is swept away."""

log = structlog.get_logger()


class RegistryBehind(MeshError):
    """A watcher knows more of the store than this registry has read: it would be taken back."""

    code = Code.UNAVAILABLE
    reason = "REGISTRY_BEHIND"


class WatcherTooSlow(MeshError):
    """The watcher does not read fast enough: watch again from a new snapshot."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "WATCHER_TOO_SLOW"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All providers as of a position."""

    providers: tuple[Provider, ...]
    position: Position
    digest: bytes


@dataclass(frozen=True, slots=True)
class Alive:
    """The watch lives, and this is where it stands."""

    position: Position
    digest: bytes


@dataclass(frozen=True, slots=True)
class Changes:
    """What came of several providers within a moment: the last of each."""

    changes: tuple[Change, ...]
    position: Position


Event = Snapshot | Change | Changes | Alive
News = asyncio.Queue[Event | None]
"""What a watcher has not read yet; None ends it, because it reads too slowly."""


class Directory:
    """All providers with a live lease."""

    def __init__(self, bucket: Bucket, trust_domain: str, clock: Callable[[], float] = time.time) -> None:
        self._bucket = bucket
        self._trust_domain = trust_domain
        self._clock = clock
        self._view = View(trust_domain)
        self._digested: tuple[Position, bytes] = (Position("", 0), b"")
        self._watchers: set[News] = set()
        self._gathered: dict[str, Change] = {}
        self._telling: asyncio.TimerHandle | None = None
        self.synchronised = asyncio.Event()

    def all(self) -> list[Provider]:
        """Providers with a live lease, in order of their SPIFFE ID."""
        now = self._clock() * 1000
        return [provider for provider in self._view.providers() if provider.lease_until_ms > now]

    def providers(self) -> list[Provider]:
        """All that the store holds, those whose lease has just run out too."""
        return self._view.providers()

    def stored(self, spiffe_id: str) -> tuple[Provider, int] | None:
        """What the store was last seen to hold of a node, and its revision."""
        return self._view.stored(spiffe_id)

    def sessions(self) -> set[str]:
        """The sessions of all providers, of those whose lease has just run out too."""
        return {provider.session_id for provider in self._view.providers()}

    @property
    def position(self) -> Position:
        return self._view.position

    @contextmanager
    def enlisted(self) -> Iterator[News]:
        """Hear every event from now on, while the body runs."""
        # What was gathered until now is in the state that the new watcher begins with.
        self._tell_gathered()
        news: News = asyncio.Queue(_MAX_BACKLOG)
        self._watchers.add(news)
        try:
            yield news
        finally:
            self._watchers.discard(news)

    def since(self, position: Position | None) -> list[Event]:
        """Return what brings a watcher from a position to now: the changes since, or else the whole state.

        Raises `RegistryBehind`.
        """
        if position is not None and self._view.is_behind(position):
            raise RegistryBehind("this registry has not read as much of the store yet: ask another, or later")
        changes = None if position is None else self._view.since(position)
        if changes is None:
            return [self._snapshot()]
        return [*changes] if changes else [self._alive()]

    async def follow(self) -> None:
        """Follow the store for ever; a broken watch or a reconnected broker starts from a whole reading."""
        await for_ever(self._follow_once)

    async def beat(self) -> None:
        """Tell all watchers where they should stand, for ever, whether or not anything changes."""
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            self._tell(self._alive())

    async def tidy(self) -> None:
        """Delete leases that ran out, and marks of deletion when they are too many, for ever."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.delete_expired()
            try:
                await self.forget_ended()
            except (HistoryMalformed, StoreConflict, StoreUnavailable) as error:
                log.warning("marks of deletion stay", reason=error.reason)

    async def delete_expired(self) -> None:
        """Delete the leases that have run out by now, unless one was renewed and this view does not know it yet."""
        for key, revision in self._view.expired(self._clock() * 1000):
            try:
                await self._bucket.delete(key, revision)
            except (StoreConflict, StoreUnavailable) as error:
                log.warning("a lease that ran out is still stored", key=key, reason=error.reason)

    async def forget_ended(self, most: int = _MAX_ENDED) -> None:
        """Sweep away the older half of the marks of deletion once there are more than `most`.

        The floor is written first: from then on no registry resumes a watch that would need them. It never falls, and
        a view that is behind the store ends none of its lives. Raises `HistoryMalformed` and the store's refusals.
        """
        ended, epoch = self._view.ended(), self._view.position.epoch
        if len(ended) <= most:
            return
        swept = ended[: len(ended) - most // 2]
        stored = await self._bucket.get(HISTORY_KEY)
        if stored is None or (history := decode_history(stored.value)).epoch != epoch:
            return
        floor = max(history.floor, swept[-1][1])
        await self._bucket.put(HISTORY_KEY, History(epoch, floor).encode(), stored.revision)
        for instance, revision in swept:
            for key in (lease_key(instance), drain_key(instance)):
                await self._bucket.erase(key, revision)

    async def _follow_once(self) -> None:
        """Follow one watch until it is of no use any more."""
        await self._begin_history()
        fresh: View | None = View(self._trust_domain)
        behind: Position | None = None
        async with aclosing(entries(self._bucket)) as stored:
            async for entry in stored:
                match entry:
                    case Entry() if fresh is not None:
                        fresh.take(entry)
                    case Entry():
                        if (change := self._view.take(entry)) is not None:
                            self._tell(change)
                    case Whole() if fresh is not None:
                        await self._adopt(fresh)
                        fresh = None
                    case Quiet(last):
                        if behind == self.position:
                            raise StoreUnavailable("the store's watch fell silent")
                        behind = self.position if last != self.position.sequence else None

    async def _begin_history(self) -> None:
        """Name this life of the store, unless another registry did."""
        stored = await self._bucket.get(HISTORY_KEY)
        try:
            if stored is not None:
                decode_history(stored.value)
                return
        except HistoryMalformed as error:
            log.error("the store's history is begun anew", detail=str(error))
        await self._write_history(0 if stored is None else stored.revision)

    async def _write_history(self, revision: int) -> None:
        with suppress(StoreConflict):  # Then another registry has just done it.
            await self._bucket.put(HISTORY_KEY, History(secrets.token_hex(16)).encode(), revision)

    async def _adopt(self, fresh: View) -> None:
        """Take a whole reading for the view, and tell watchers what is new in it."""
        if not fresh.position.epoch:
            raise HistoryMalformed("the store names no life of its own")
        before = self._view.position
        if fresh.position.epoch == before.epoch and fresh.position.sequence < before.sequence:
            # Revisions are about to be given out a second time: nobody may take them for those that he knows.
            log.error("the store went back", revision=fresh.position.sequence, known=before.sequence)
            stored = await self._bucket.get(HISTORY_KEY)
            await self._write_history(0 if stored is None else stored.revision)
            raise EpochEnded("the store went back to an earlier state")
        missed = fresh.since(before)
        self._view = fresh
        self.synchronised.set()
        for event in [self._snapshot()] if missed is None else missed:
            self._tell(event)

    def _snapshot(self) -> Snapshot:
        return Snapshot(tuple(self._view.providers()), self.position, self._digest())

    def _alive(self) -> Alive:
        return Alive(self.position, self._digest())

    def _digest(self) -> bytes:
        if self._digested[0] != self.position:
            self._digested = (self.position, state_digest(self._view.providers()))
        return self._digested[1]

    def _tell(self, event: Event) -> None:
        """Tell all watchers: of a change within a moment, together with others; of everything else now, and after."""
        if not isinstance(event, Change):
            self._tell_gathered()
            self._give(event)
            return
        # The last of each counts, and takes its place: positions grow along the batch.
        self._gathered.pop(event.spiffe_id, None)
        self._gathered[event.spiffe_id] = event
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._tell_gathered)

    def _tell_gathered(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        gathered, self._gathered = tuple(self._gathered.values()), {}
        if len(gathered) == 1:
            self._give(gathered[0])
        elif gathered:
            self._give(Changes(gathered, gathered[-1].position))

    def _give(self, event: Event) -> None:
        for news in list(self._watchers):
            if news.full():
                self._watchers.discard(news)
                news.get_nowait()
                news.put_nowait(None)
            else:
                news.put_nowait(event)
