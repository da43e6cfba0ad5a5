"""Responsible for reading a log's stream: in sequence order, every hole noticed, from the log's own position.

The consumer's state in NATS is flow control only. It is made anew on every connection, from where the log stands; when
the connection changes the reader ends, so that whoever reads compares positions before going on.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)
from nats.js.errors import NotFoundError

from libs.errors import Code, MeshError
from libs.events.cancellation import heeding_cancellation
from libs.events.connect import BrokerUnavailable, NatsLink
from libs.events.subjects import all_issuers, stream_name

MAX_MESSAGE_SIZE = 1024 * 1024
DUPLICATE_WINDOW_SECONDS = 300
DEFAULT_MAX_ACK_PENDING = 4 * 4096
"""Four of the largest frames, were every message to hold one record."""
_ACK_WAIT_SECONDS = 60
_PULL_MESSAGES = 256
_PULL_SECONDS = 30
_HEARTBEAT_SECONDS = 5
_SILENCE_SECONDS = 3 * _HEARTBEAT_SECONDS
_ABANDONED_SECONDS = 120
_NANOSECONDS = 1_000_000_000


class StreamMisconfigured(MeshError):
    """The stream exists and would forget or overwrite messages. An operator must mend it."""

    reason = "STREAM_MISCONFIGURED"


class StreamInterrupted(MeshError):
    """The stream can no longer be read on this connection. Connect, compare positions, and read again."""

    code = Code.UNAVAILABLE
    reason = "STREAM_INTERRUPTED"


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What the broker says of its stream. It may be wrong; the log's own position is what counts."""

    created: datetime
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """One message, with the sequence number and the time (Unix milliseconds) that the stream gave it."""

    sequence: int
    data: bytes
    time_ms: int


@dataclass(frozen=True, slots=True)
class StreamGap:
    """Sequence numbers, both inclusive, that the stream has lost. Their publishers will send again."""

    first: int
    last: int


async def ensure_stream(link: NatsLink, log_number: int, *, max_bytes: int, replicas: int, timeout: float) -> None:
    """Create a log's stream where it does not exist. Raises `StreamMisconfigured`, `BrokerUnavailable`."""
    stream = await link.jetstream(timeout)
    wanted = StreamConfig(
        name=stream_name(log_number),
        subjects=[all_issuers(log_number)],
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.NEW,
        deny_delete=True,
        deny_purge=False,
        max_age=0,
        max_bytes=max_bytes,
        max_msg_size=MAX_MESSAGE_SIZE,
        duplicate_window=DUPLICATE_WINDOW_SECONDS,
        num_replicas=replicas,
        allow_rollup_hdrs=False,
    )
    try:
        try:
            found = (await stream.stream_info(stream_name(log_number))).config
        except NotFoundError:
            found = (await stream.add_stream(wanted)).config
    except (nats.errors.Error, OSError) as error:
        raise BrokerUnavailable(f"cannot set up the stream: {error}") from error
    for name in (
        "subjects",
        "storage",
        "retention",
        "discard",
        "deny_delete",
        "allow_rollup_hdrs",
        "mirror",
        "sources",
    ):
        if (getattr(found, name) or None) != (getattr(wanted, name) or None):
            raise StreamMisconfigured(f"stream {found.name} has another {name} than a log needs")
    if found.max_age or (found.max_msgs or -1) > 0 or found.max_msgs_per_subject > 0:
        raise StreamMisconfigured(f"stream {found.name} forgets messages")


async def make_room(link: NatsLink, log_number: int, *, below: int, timeout: float) -> int:
    """Remove the messages below a number where a log's stream is more than half full; return how many those were.

    They MUST be durable in the log. Raises `BrokerUnavailable`.
    """
    stream = await link.jetstream(timeout)
    try:
        info = await stream.stream_info(stream_name(log_number))
        most, first = info.config.max_bytes or 0, info.state.first_seq
        if below <= first or not 0 < most < 2 * info.state.bytes:
            return 0
        await stream.purge_stream(stream_name(log_number), seq=below)
    except (nats.errors.Error, OSError) as error:
        raise BrokerUnavailable(f"cannot make room in the stream: {error}") from error
    return below - first


async def read_message(link: NatsLink, log_number: int, sequence: int, timeout: float) -> StreamMessage | None:
    """Return one message by its number, or None when the stream does not have it. Raises `BrokerUnavailable`."""
    stream = await link.jetstream(timeout)
    try:
        raw = await stream.get_msg(stream_name(log_number), seq=sequence)
    except NotFoundError:
        return None
    except (nats.errors.Error, OSError) as error:
        raise BrokerUnavailable(f"cannot read message {sequence}: {error}") from error
    if raw.seq != sequence or raw.time is None:
        return None
    return StreamMessage(sequence, raw.data or b"", _milliseconds(raw.time))


@asynccontextmanager
async def read_stream(
    link: NatsLink,
    log_number: int,
    *,
    after: int,
    timeout: float,
    max_ack_pending: int = DEFAULT_MAX_ACK_PENDING,
) -> AsyncIterator[StreamReader]:
    """Read from sequence `after` + 1 on. Raises `StreamInterrupted` or `BrokerUnavailable`."""
    client = await link.client(timeout)
    connection = link.connections
    stream = client.jetstream(timeout=timeout)
    inbox = client.new_inbox()
    try:
        facts = _facts(await stream.stream_info(stream_name(log_number)))
        consumer = await stream.add_consumer(
            stream_name(log_number),
            ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=after + 1,
                ack_policy=AckPolicy.ALL,
                ack_wait=_ACK_WAIT_SECONDS,
                max_ack_pending=max_ack_pending,
                inactive_threshold=_ABANDONED_SECONDS,
            ),
        )
        subscription = await client.subscribe(inbox)
    except (nats.errors.Error, OSError) as error:
        raise StreamInterrupted(f"cannot read the stream: {error}") from error
    reader = StreamReader(link, client, stream, log_number, after, facts, consumer.name, subscription, connection)
    try:
        yield reader
    finally:
        await reader.close()


class StreamReader:
    """One reading of the stream."""

    def __init__(
        self,
        link: NatsLink,
        client: Client,
        stream: JetStreamContext,
        log_number: int,
        after: int,
        facts: StreamFacts,
        consumer: str,
        subscription: Subscription,
        connection: int,
    ) -> None:
        self.facts = facts
        self._link = link
        self._client = client
        self._stream = stream
        self._log_number = log_number
        self._expected = after + 1
        self._consumer = consumer
        self._subscription = subscription
        self._connection = connection
        self._unacknowledged: deque[tuple[int, str]] = deque()

    async def events(self) -> AsyncIterator[StreamMessage | StreamGap]:
        """Yield what follows; each number is in exactly one message or gap. Raises `StreamInterrupted`."""
        wanted = 0
        while True:
            if wanted == 0:
                await self._pull()
                wanted = _PULL_MESSAGES
            message = await self._next()
            status = (message.headers or {}).get("Status")
            if status is not None:
                if not _goes_on(status, message):
                    wanted = 0
                continue
            wanted -= 1
            found = _parse(message)
            if found.sequence < self._expected:
                continue
            async for missing in self._missing(found.sequence):
                yield missing
            self._unacknowledged.append((found.sequence, message.reply))
            self._expected = found.sequence + 1
            yield found

    async def ack_all(self, sequence: int) -> None:
        """Let the broker deliver more. Call only once everything up to `sequence` is durable in the log."""
        reply = None
        while self._unacknowledged and self._unacknowledged[0][0] <= sequence:
            _, reply = self._unacknowledged.popleft()
        if reply is None:
            return
        try:
            await self._client.publish(reply, b"+ACK")
        except (nats.errors.Error, OSError) as error:
            raise StreamInterrupted(f"cannot acknowledge: {error}") from error

    async def close(self) -> None:
        """Remove the consumer where the broker is still there; where not, it removes it by itself."""
        if not self._link.is_connected or self._link.connections != self._connection:
            return
        try:
            await self._subscription.unsubscribe()
            await self._stream.delete_consumer(stream_name(self._log_number), self._consumer)
        except (nats.errors.Error, OSError):
            return

    async def _pull(self) -> None:
        request = {
            "batch": _PULL_MESSAGES,
            "expires": _PULL_SECONDS * _NANOSECONDS,
            "idle_heartbeat": _HEARTBEAT_SECONDS * _NANOSECONDS,
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream_name(self._log_number)}.{self._consumer}"
        try:
            await self._client.publish(subject, json.dumps(request).encode(), reply=self._subscription.subject)
        except (nats.errors.Error, OSError) as error:
            raise StreamInterrupted(f"cannot ask for messages: {error}") from error

    async def _next(self) -> Msg:
        waited = 0
        while True:
            self._require_same_connection()
            try:
                with heeding_cancellation():
                    return await self._subscription.next_msg(timeout=1)
            except TimeoutError as error:
                waited += 1
                if waited >= _SILENCE_SECONDS:
                    raise StreamInterrupted("the broker has fallen silent") from error
            except (nats.errors.Error, OSError) as error:
                raise StreamInterrupted(f"cannot read the stream: {error}") from error

    def _require_same_connection(self) -> None:
        if not self._link.is_connected or self._link.connections != self._connection:
            raise StreamInterrupted("the connection to the broker changed")

    async def _missing(self, until: int) -> AsyncIterator[StreamMessage | StreamGap]:
        """Yield what lies between the number expected and `until`, read one by one; what is gone, as gaps."""
        gap_from: int | None = None
        while self._expected < until:
            self._require_same_connection()
            number = self._expected
            found = None
            if number >= self.facts.first_seq:
                found = await read_message(self._link, self._log_number, number, _HEARTBEAT_SECONDS)
            else:
                # Numbers below the stream's first are gone together; asking for each could take hours.
                self._expected = min(self.facts.first_seq, until) - 1
            if found is None:
                gap_from = number if gap_from is None else gap_from
            elif gap_from is not None:
                yield StreamGap(gap_from, number - 1)
                gap_from = None
            self._expected += 1
            if found is not None:
                yield found
        if gap_from is not None:
            yield StreamGap(gap_from, until - 1)


def _facts(info: StreamInfo) -> StreamFacts:
    if info.created is None:
        raise StreamInterrupted("the broker does not say when its stream was made")
    return StreamFacts(info.created, info.state.first_seq, info.state.last_seq)


def _goes_on(status: str, message: Msg) -> bool:
    """Whether the present pull is still open after a status message. Raises `StreamInterrupted`."""
    if status == "100":
        return True
    description = (message.headers or {}).get("Description", "")
    if status == "503" or (status == "409" and "Consumer" in description):
        raise StreamInterrupted(f"the consumer is gone: {status} {description}")
    return False


def _parse(message: Msg) -> StreamMessage:
    try:
        metadata: Any = message.metadata
        return StreamMessage(metadata.sequence.stream, message.data, _milliseconds(metadata.timestamp))
    except (nats.errors.Error, ValueError, IndexError) as error:
        raise StreamInterrupted("the broker delivered a message that is not the stream's") from error


def _milliseconds(moment: datetime) -> int:
    return round(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)
