"""Responsible for batches on their way out: collect, store, publish, and send again unchanged until answered."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import nats.errors
import structlog

from libs.errors import MeshError
from libs.events.batches import encode_batch
from libs.events.connect import NatsLink
from libs.events.issuer import Issuer, Sealed
from libs.events.outbox import Outbox
from libs.events.outbox_items import Cut, RecordFacts, Stored
from libs.events.subjects import issuer_subject, message_id, stream_name

_BATCH_RECORDS = 64
_BATCH_BYTES = 256 * 1024
_IN_FLIGHT = 4
_MAX_DOUBLINGS = 4

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things are waited for, seconds."""

    linger_seconds: float = 0.05
    """How long a batch collects at most while another is in flight, or nothing would be durable behind a broker that
    does not answer."""
    publish_seconds: float = 2.0
    """How long the broker may take to answer one publish."""
    resend_seconds: float = 3.0
    """How long a batch that the broker took rests before it is sent again; doubles each time, up to 16-fold."""
    retry_seconds: float = 0.5
    """How long until what the broker did not take is sent again."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A sealed entry, what becomes settled together with it, and who waits for it to be durable."""

    sealed: Sealed
    cuts: tuple[Cut, ...]
    durable: asyncio.Future[None]

    @property
    def size(self) -> int:
        return len(self.sealed.record.body)


class Sender:
    """The way from a sealed entry to the broker. Whether it arrived is not the broker's to say."""

    def __init__(
        self,
        issuer: Issuer,
        outbox: Outbox,
        link: NatsLink,
        log_number: int,
        timing: Timing,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._issuer = issuer
        self._outbox = outbox
        self._link = link
        self._log_number = log_number
        self._timing = timing
        self._tasks = tasks
        self._queue: deque[Outgoing] = deque()
        self._queue_bytes = 0
        self._queued_of: Counter[str | None] = Counter()
        """How many bytes of the queue are whose."""
        self._arrived = asyncio.Event()
        self._due = asyncio.Event()
        """Nothing is in flight, or there is enough for a batch."""
        self._due.set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._attempts: dict[tuple[bytes, int], tuple[int, float]] = {}
        self._publishing: set[tuple[bytes, int]] = set()
        self._introduced: set[bytes] = set()
        """Issuers whose first batch, the keyset, the broker has taken: nothing of theirs may overtake it."""
        self._introductions: dict[bytes, str] = {}
        """What stands for the newest copy of an issuer's keyset in the stream. It is part of the ids of what follows:
        what the ledger read before it was refused, and under its old id the broker would drop it as known."""

    @property
    def is_connected(self) -> bool:
        return self._link.is_connected

    @property
    def queued_bytes(self) -> int:
        return self._queue_bytes

    def queued_of(self, tenant: str) -> int:
        """Return how much of it is a tenant's."""
        return self._queued_of[tenant]

    def take(self, outgoing: Outgoing) -> None:
        self._queue.append(outgoing)
        self._queue_bytes += outgoing.size
        self._queued_of[outgoing.sealed.tenant] += outgoing.size
        self._arrived.set()
        if self._has_enough():
            self._due.set()

    async def collect(self) -> None:
        """Make batches: when nothing is in flight, when there is enough, or when the linger is over.

        So the slower disk and broker are, the more one batch takes: each costs everyone on the way a sync.
        """
        while True:
            await self._arrived.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timing.linger_seconds):
                    await self._due.wait()
            self._carry_next()

    async def flush(self) -> None:
        """Make durable whatever was taken, before closing. What is unsent the next start sends."""
        while self._queue:
            self._carry_next()
        if self._carrying:
            await asyncio.wait(self._carrying)

    async def resend(self) -> None:
        """Send unanswered batches again, unchanged: on every new connection, and in between."""
        seen = 0
        while True:
            try:
                async with asyncio.timeout(self._timing.retry_seconds):
                    seen = await self._link.connected_after(seen)
                    self._attempts.clear()
                    self._introduced.clear()
            except TimeoutError:
                pass
            if self._link.is_connected:
                await self._resend_due()

    def _carry_next(self) -> None:
        taken: list[Outgoing] = []
        size = 0
        while self._queue and len(taken) < _BATCH_RECORDS and (not taken or size + self._queue[0].size <= _BATCH_BYTES):
            taken.append(self._queue.popleft())
            size += taken[-1].size
            self._queued_of[taken[-1].sealed.tenant] -= taken[-1].size
        self._queue_bytes -= size
        if not self._queue:
            self._arrived.clear()
            self._queued_of.clear()
        if not self._has_enough():
            self._due.clear()
        batch = self._seal_batch(taken)
        # Appended here, not in the task: the outbox must see batches in the order of their numbers.
        durable = self._outbox.append(batch)
        for outgoing in taken:
            for cut in outgoing.cuts:
                self._outbox.append(cut)
        task = self._tasks.create_task(self._carry(batch, taken, durable))
        self._carrying.add(task)
        task.add_done_callback(self._landed)

    def _has_enough(self) -> bool:
        return len(self._queue) >= _BATCH_RECORDS or self._queue_bytes >= _BATCH_BYTES

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._carrying.discard(task)
        if not self._carrying:
            self._due.set()

    def _seal_batch(self, taken: Sequence[Outgoing]) -> Stored:
        first_seq = taken[0].sealed.issuer_seq
        records = [outgoing.sealed.record for outgoing in taken]
        message = encode_batch(self._issuer.id, first_seq, records, self._issuer.key)
        facts = tuple(RecordFacts.of(outgoing.sealed.record, outgoing.sealed.tenant) for outgoing in taken)
        return Stored(self._issuer.id, first_seq, message, facts)

    async def _carry(self, batch: Stored, taken: Sequence[Outgoing], durable: asyncio.Future[None]) -> None:
        await durable
        for outgoing in taken:
            if not outgoing.durable.done():
                outgoing.durable.set_result(None)
        if self._link.is_connected and not self._is_early(batch):
            await self._publish(batch)

    async def _resend_due(self) -> None:
        unanswered = [
            batch for issuer in self._outbox.state.issuers() for batch in self._outbox.state.unacknowledged(issuer)
        ]
        open_keys = {(batch.issuer, batch.first_seq) for batch in unanswered}
        self._attempts = {key: attempt for key, attempt in self._attempts.items() if key in open_keys}
        for keyset in [batch for batch in unanswered if batch.first_seq == 1 and self._is_due(batch)]:
            await self._publish(keyset)
        due = [batch for batch in unanswered if self._is_due(batch) and not self._is_early(batch)]
        for start in range(0, len(due), _IN_FLIGHT):
            await asyncio.gather(*(self._publish(batch) for batch in due[start : start + _IN_FLIGHT]))

    def _is_due(self, batch: Stored) -> bool:
        tries, last = self._attempts.get((batch.issuer, batch.first_seq), (0, 0.0))
        if tries == 0:
            return True
        rest = self._timing.resend_seconds * (1 << min(tries - 1, _MAX_DOUBLINGS))
        return asyncio.get_running_loop().time() - last >= rest

    def _is_early(self, batch: Stored) -> bool:
        """Whether the batch would overtake its issuer's keyset."""
        if batch.first_seq == 1 or batch.issuer in self._introduced:
            return False
        first = next(iter(self._outbox.state.unacknowledged(batch.issuer)), None)
        if first is not None and first.first_seq == 1:
            return True
        self._introduced.add(batch.issuer)  # The ledger has the keyset, whatever became of the broker.
        return False

    async def _publish(self, batch: Stored) -> None:
        """Send a batch once. Neither success nor failure changes what is known of it."""
        key = (batch.issuer, batch.first_seq)
        if key in self._publishing:
            return
        self._publishing.add(key)
        try:
            async with self._slots:
                tries, _ = self._attempts.get(key, (0, 0.0))
                self._attempts[key] = (tries + 1, asyncio.get_running_loop().time())
                stream = await self._link.jetstream(self._timing.publish_seconds)
                taken = await stream.publish(
                    issuer_subject(self._log_number, batch.issuer),
                    batch.message,
                    timeout=self._timing.publish_seconds,
                    stream=stream_name(self._log_number),
                    headers={"Nats-Msg-Id": self._message_id(batch)},
                )
                if batch.first_seq == 1:
                    self._introduce(batch.issuer, is_new=not taken.duplicate)
        except (nats.errors.Error, MeshError, OSError) as error:
            self._attempts.pop(key, None)  # The broker has not taken it: it need not rest.
            log.warning("publish failed", first_seq=batch.first_seq, error=str(error) or type(error).__name__)
        except (ValueError, TypeError, KeyError) as error:
            # What the broker answered is not JSON or not an answer; it is not trusted to be.
            log.warning("broker answered nonsense", first_seq=batch.first_seq, error=type(error).__name__)
        finally:
            self._publishing.discard(key)

    def _message_id(self, batch: Stored) -> str:
        introduction = "" if batch.first_seq == 1 else self._introductions.get(batch.issuer, "")
        return message_id(batch.issuer, batch.first_seq, introduction)

    def _introduce(self, issuer: bytes, *, is_new: bool) -> None:
        """Let the rest of an issuer's batches follow its keyset. Where that is new to the stream, the broker is to take
        all of them, also those that it took before: it may have lost the keyset that they followed.
        """
        self._introduced.add(issuer)
        if is_new:
            self._introductions[issuer] = secrets.token_hex(8)
