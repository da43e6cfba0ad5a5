"""It is responsible for a watch: the whole state or what was missed of it, and then every change, without a gap."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from services.registry.directory import Directory, Event, WatcherTooSlow
from services.registry.view import Position


async def watch(directory: Directory, known: Position | None = None) -> AsyncGenerator[Event, None]:
    """Yield what brings a watcher from what it knows to now, and then what follows. Raises `WatcherTooSlow`.

    A position that the store does not remember is answered by a snapshot. A watcher that knows more than this registry
    has read is sent elsewhere: raises `RegistryBehind`.
    """
    await directory.synchronised.wait()
    with directory.enlisted() as news:
        # Nothing is awaited between the two: what happens from here on is in the news.
        for event in directory.since(known):
            yield event
        while (event_or_end := await news.get()) is not None:
            yield event_or_end
    raise WatcherTooSlow("watch again: this watcher fell too far behind")
