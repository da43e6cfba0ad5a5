"""It is responsible for reading the stream: from where the log stands, in groups, with NATS told only what is durable.

While one group is being committed the next messages gather and go together, so a slow disk makes larger groups.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import structlog

from libs.errors import MeshError
from libs.events.connect import BrokerUnavailable, NatsLink
from libs.events.consume import (
    StreamGap,
    StreamInterrupted,
    StreamMessage,
    StreamReader,
    ensure_stream,
    read_message,
    read_stream,
)
from services.ledger.committing import Committing, Event
from services.ledger.position import Position, Start

_CALL_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_QUEUE_MESSAGES = 256
_GROUP_MESSAGES = 256
_GROUP_BYTES = 4 * 1024 * 1024

log = structlog.get_logger()

_Queue = asyncio.Queue[Event | MeshError]


@dataclass(slots=True)
class _Group:
    """What is committed together, and why reading ended after it, if it did."""

    events: list[Event] = field(default_factory=list)
    end: MeshError | None = None


class Intake:
    """Reads one log's stream."""

    def __init__(self, link: NatsLink, log_number: int, position: Position, committing: Committing) -> None:
        self._link = link
        self._log_number = log_number
        self._position = position
        self._committing = committing

    async def prepare(self, *, max_bytes: int, replicas: int) -> None:
        """Make the stream where there is none; a broker that is away is waited for. Raises `StreamMisconfigured`."""
        while True:
            try:
                await ensure_stream(
                    self._link, self._log_number, max_bytes=max_bytes, replicas=replicas, timeout=_CALL_SECONDS
                )
            except BrokerUnavailable as error:
                log.warning("waiting for the broker", detail=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def run(self) -> None:
        """Read until cancelled. Raises what must end the process, for example damage that reading the log found."""
        while True:
            connection = self._link.connections
            try:
                await self._read_once()
            except (StreamInterrupted, BrokerUnavailable) as error:
                log.info("the stream cannot be read", reason=error.reason, detail=str(error))
            # Where another connection has taken over already there is nothing to wait for.
            if not self._link.is_connected or self._link.connections == connection:
                await asyncio.sleep(_RETRY_SECONDS)

    async def _read_once(self) -> None:
        tried = self._position.high
        async with self._reader(tried) as reader:
            start = await self._position.compare(reader.facts, self._read_message)
            if start.after == tried:
                await self._consume(reader, start)
                return
        async with self._reader(start.after) as reader:
            await self._consume(reader, start)

    async def _consume(self, reader: StreamReader, start: Start) -> None:
        """Commit what the reader yields, until it ends. Raises why it did."""
        self._committing.begin(start)
        queue: _Queue = asyncio.Queue(_QUEUE_MESSAGES)
        pump = asyncio.create_task(_pump(reader, queue))
        try:
            while True:
                group = await _gather(queue)
                if group.events:
                    await self._committing.commit(group.events)
                    await reader.ack_all(_high(group.events[-1]))
                if group.end is not None:
                    raise group.end
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    def _reader(self, after: int) -> AbstractAsyncContextManager[StreamReader]:
        return read_stream(self._link, self._log_number, after=after, timeout=_CALL_SECONDS)

    async def _read_message(self, sequence: int) -> StreamMessage | None:
        return await read_message(self._link, self._log_number, sequence, _CALL_SECONDS)


async def _pump(reader: StreamReader, queue: _Queue) -> None:
    """Fill the queue; a full one stops the reading, and so, by and by, the publishers."""
    try:
        async for event in reader.events():
            await queue.put(event)
    except MeshError as error:
        await queue.put(error)


async def _gather(queue: _Queue) -> _Group:
    """Wait for one event and take with it what is there."""
    group, size = _Group(), 0
    item = await queue.get()
    while True:
        if isinstance(item, MeshError):
            group.end = item
            return group
        group.events.append(item)
        size += 0 if isinstance(item, StreamGap) else len(item.data)
        if queue.empty() or len(group.events) >= _GROUP_MESSAGES or size >= _GROUP_BYTES:
            return group
        item = queue.get_nowait()


def _high(event: Event) -> int:
    return event.last if isinstance(event, StreamGap) else event.sequence
