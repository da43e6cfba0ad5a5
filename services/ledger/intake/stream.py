"""It is responsible for reading the stream: from where the log stands, in groups, with NATS told only what is durable.

While one group is being committed the next messages are examined, gather and go together, so a slow disk makes larger
groups.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from libs.errors import MeshError
from libs.events.cancellation import heeding_cancellation
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
from services.ledger.intake.arrivals import Arrival, Arrivals, Event
from services.ledger.intake.committing import Committing
from services.ledger.intake.position import Position, Start

_CALL_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_QUEUE_MESSAGES = 128
_GROUP_MESSAGES = 256
_GROUP_BYTES = 4 * 1024 * 1024
_EXAMINED_BYTES = 512 * 1024
"""Examined together: reading so much takes the event loop a few milliseconds."""

log = structlog.get_logger()

Came = StreamMessage | StreamGap
T = TypeVar("T", Came, Event)


@dataclass(slots=True)
class _Group(Generic[T]):
    """What goes on together, and why reading ended after it, if it did."""

    events: list[T] = field(default_factory=list)
    end: MeshError | None = None


class _Queue(Generic[T]):
    """What waits for the next step. A full one stops the step before, and so, by and by, the publishers."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[T | MeshError] = asyncio.Queue(_QUEUE_MESSAGES)

    async def put(self, item: T | MeshError) -> None:
        """Add an event, or why none follows."""
        await self._items.put(item)

    async def gather(self, max_bytes: int) -> _Group[T]:
        """Wait for one event and take with it what is there."""
        group, size = _Group[T](), 0
        item = await self._items.get()
        while True:
            if isinstance(item, MeshError):
                group.end = item
                return group
            group.events.append(item)
            size += _size(item)
            if self._items.empty() or len(group.events) >= _GROUP_MESSAGES or size >= max_bytes:
                return group
            item = self._items.get_nowait()


@dataclass(frozen=True, slots=True)
class _Examining:
    """A group that is with the examiner, and why reading ended after it, if it did."""

    events: asyncio.Task[list[Event]]
    end: MeshError | None


class Intake:
    """Reads one log's stream."""

    def __init__(
        self,
        link: NatsLink,
        log_number: int,
        position: Position,
        arrivals: Arrivals,
        committing: Committing,
        *,
        max_bytes: int,
        replicas: int,
    ) -> None:
        """`max_bytes` and `replicas` are of the stream, where it is made here."""
        self._link = link
        self._log_number = log_number
        self._position = position
        self._arrivals = arrivals
        self._committing = committing
        self._max_bytes = max_bytes
        self._replicas = replicas
        self._on_the_way = 0
        """How many bytes were taken from the stream that are not committed yet."""

    async def run(self) -> None:
        """Read until cancelled, making the stream where there is none: nobody else would, were it lost meanwhile.

        A broker that is away is waited for. Raises what must end the process: `StreamMisconfigured`, or for example
        damage that reading the log found.
        """
        while True:
            connection = self._link.connections
            try:
                with heeding_cancellation():
                    await self._ensure_stream()
                    await self._read_once()
            except* (StreamInterrupted, BrokerUnavailable) as ended:
                log.info("the stream cannot be read", detail="; ".join(map(str, ended.exceptions)))
            # Where another connection has taken over already there is nothing to wait for.
            if not self._link.is_connected or self._link.connections == connection:
                await asyncio.sleep(_RETRY_SECONDS)

    async def _ensure_stream(self) -> None:
        await ensure_stream(
            self._link, self._log_number, max_bytes=self._max_bytes, replicas=self._replicas, timeout=_CALL_SECONDS
        )

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
        """Commit what the reader yields, until it ends. Raises, in a group, why it did."""
        self._committing.begin(start)
        self._on_the_way = 0
        came, examined = _Queue[Came](), _Queue[Event]()
        examining: asyncio.Queue[_Examining] = asyncio.Queue(1)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pump(reader, came))
            tasks.create_task(self._examine(came, examining, tasks))
            tasks.create_task(_pass_on(examining, examined))
            while True:
                group = await examined.gather(_GROUP_BYTES)
                if group.events:
                    await self._committing.commit(group.events)
                    self._on_the_way -= sum(map(_size, group.events))
                    await reader.ack_all(_high(group.events[-1]))
                if group.end is not None:
                    raise group.end

    async def _examine(
        self, came: _Queue[Came], examining: asyncio.Queue[_Examining], tasks: asyncio.TaskGroup
    ) -> None:
        """Have groups examined, the next one asked for before the one before is answered: so the examiner works on
        while this process reads and asks.
        """
        end = None
        while end is None:
            group = await came.gather(_EXAMINED_BYTES)
            end = group.end
            reading = self._arrivals.read(group.events, on_the_way=self._on_the_way)
            self._on_the_way += sum(map(_size, group.events))
            await examining.put(_Examining(tasks.create_task(reading), end))

    def _reader(self, after: int) -> AbstractAsyncContextManager[StreamReader]:
        return read_stream(self._link, self._log_number, after=after, timeout=_CALL_SECONDS)

    async def _read_message(self, sequence: int) -> StreamMessage | None:
        return await read_message(self._link, self._log_number, sequence, _CALL_SECONDS)


async def _pump(reader: StreamReader, came: _Queue[Came]) -> None:
    try:
        async for event in reader.events():
            await came.put(event)
    except MeshError as error:
        await came.put(error)


async def _pass_on(examining: asyncio.Queue[_Examining], examined: _Queue[Event]) -> None:
    """Pass on what was examined, in the order in which it came."""
    end = None
    while end is None:
        group = await examining.get()
        end = group.end
        for event in await group.events:
            await examined.put(event)
    await examined.put(end)


def _high(event: Event) -> int:
    return event.last if isinstance(event, StreamGap) else event.sequence


def _size(event: Came | Event) -> int:
    match event:
        case StreamGap():
            return 0
        case Arrival():
            return len(event.message.data)
        case StreamMessage():
            return len(event.data)
