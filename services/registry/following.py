"""It is responsible for following a bucket: all that is stored, then every change, until it is of no use any more.

A watch may end without a word: with its connection, with the bucket, or because the broker lost the consumer behind it.
So the bucket is asked about itself whenever nothing comes for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import nats.errors
import structlog

from libs.errors import MeshError
from services.registry.store import Bucket, StoreUnavailable

POLL_SECONDS = 1.0
_FIRST_SECONDS = 5.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Entry:
    """The last that was written under a key; None for a mark of deletion."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Whole:
    """Everything that was stored has been given."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing came for a while; this is the last revision of the bucket."""

    last: int


async def entries(bucket: Bucket, keys: str = ">") -> AsyncGenerator[Entry | Whole | Quiet, None]:
    """Yield what is stored under keys, `Whole`, and then what comes; end when the connection or bucket is another.

    Raises `StoreUnavailable`.
    """
    connections, created = bucket.connections, (await bucket.incarnation()).created
    watcher = await bucket.watch(keys)
    whole = False
    try:
        while bucket.connections == connections:
            try:
                # Not `updates`, whose `wait_for` may lose a cancellation that comes together with an entry.
                async with asyncio.timeout(POLL_SECONDS if whole else _FIRST_SECONDS):
                    entry = await anext(watcher)
            except TimeoutError as error:
                if not whole:
                    raise StoreUnavailable("the store's watch gives nothing") from error
                now = await bucket.incarnation()
                if now.created != created:
                    return
                yield Quiet(now.last)
                continue
            if entry is None:
                whole = True
                yield Whole()
            else:
                value = None if entry.operation is not None or not entry.value else entry.value
                yield Entry(entry.key, value, entry.revision or 0)
    finally:
        # On a connection that is gone there is nothing to stop, and no reason to forget why this ends.
        with suppress(nats.errors.Error):
            await watcher.stop()  # type: ignore[no-untyped-call]


async def for_ever(follow: Callable[[], Awaitable[None]]) -> None:
    """Follow again whenever following ends; what it fails with is logged."""
    while True:
        try:
            await follow()
        except (nats.errors.Error, OSError) as error:
            log.warning("the store's watch broke", detail=str(error))
        except MeshError as error:
            log.warning("the store's watch broke", reason=error.reason, detail=str(error))
        else:
            continue
        await asyncio.sleep(POLL_SECONDS)
