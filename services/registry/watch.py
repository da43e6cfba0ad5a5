"""It is responsible for a watch: a snapshot, then every change after it, and a sign of life when nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from services.registry.directory import Change, Directory
from services.registry.providers import Provider

HEARTBEAT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All providers as of a sequence number."""

    providers: tuple[Provider, ...]
    sequence: int


@dataclass(frozen=True, slots=True)
class Alive:
    """Nothing has changed since this sequence number."""

    sequence: int


async def watch(directory: Directory) -> AsyncGenerator[Snapshot | Change | Alive, None]:
    """Yield a snapshot and then what follows it. Raises `WatcherTooSlow`."""
    await directory.synchronised.wait()
    changes = directory.changes()
    following = asyncio.ensure_future(anext(changes))
    # The watcher is enlisted on the first step of `changes`; only then may the snapshot be taken.
    await asyncio.sleep(0)
    try:
        yield Snapshot(tuple(directory.all()), directory.sequence)
        while True:
            done, _ = await asyncio.wait({following}, timeout=HEARTBEAT_SECONDS)
            if done:
                yield following.result()
                following = asyncio.ensure_future(anext(changes))
            else:
                yield Alive(directory.sequence)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await changes.aclose()
