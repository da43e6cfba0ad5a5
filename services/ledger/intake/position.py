"""It is responsible for where reading the stream goes on, and for noticing that the stream is not the one it was.

nats-server can lose messages and then give their numbers to others. Then the log must not go on from its old number:
it names a new source and reads everything again, which costs time and changes nothing that is logged already.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256

import structlog

from libs.errors import MeshError
from libs.events.batches import parse_batch
from libs.events.consume import StreamFacts, StreamMessage
from libs.transparency.chain import domain
from services.ledger.intake.rejections import Rejections
from services.ledger.storage.head import NO_SOURCE
from services.ledger.storage.store import LogStore

_HALF = 8

log = structlog.get_logger()

ReadMessage = Callable[[int], Awaitable[StreamMessage | None]]


@dataclass(frozen=True, slots=True)
class Start:
    """From which number of which source reading goes on."""

    source: bytes
    after: int


class Position:
    """The log's place in its stream."""

    def __init__(self, store: LogStore, rejections: Rejections, is_writer: Callable[[bytes], bool]) -> None:
        self._store = store
        self._rejections = rejections
        self._is_writer = is_writer

    @property
    def high(self) -> int:
        """The last number that the log has read of its source."""
        return self._store.head.source_high

    async def compare(self, facts: StreamFacts, read: ReadMessage) -> Start:
        """Return where to go on. A stream that does not hold what the log has read is a new source."""
        head = self._store.head
        why = await self._contradiction(facts, read)
        if why is None:
            return Start(head.source, head.source_high)
        if head.source != NO_SOURCE:
            log.error("the stream was rolled back or replaced", why=why, source_high=head.source_high)
        return Start(self._name(facts) + secrets.token_bytes(_HALF), max(facts.first_seq - 1, 0))

    async def _contradiction(self, facts: StreamFacts, read: ReadMessage) -> str | None:
        head = self._store.head
        if head.source == NO_SOURCE:
            return "nothing was read yet"
        if head.source[:_HALF] != self._name(facts):
            return "the stream was made anew"
        if facts.last_seq < head.source_high:
            return f"it ends at {facts.last_seq}"
        if not facts.first_seq <= head.source_high:
            return None  # What the log has read was purged, or it has read nothing.
        message = await read(head.source_high)
        if message is None:
            return "the last message read is gone"
        return None if self._agrees(message) else "another message has the last number read"

    def _agrees(self, message: StreamMessage) -> bool:
        try:
            batch = parse_batch(message.data)
        except MeshError:
            return True  # It was refused whole, so it says nothing either way.
        if not self._is_writer(batch.issuer):
            return True
        for number, record in batch.numbered():
            index = self._store.index.index_of(batch.issuer, number)
            if index is None:
                if not self._rejections.has(batch.issuer, number):
                    return False
            elif self._store.reader.entry(index).leaf.commitment != record.header.commitment:
                return self._rejections.has(batch.issuer, number)
        return True

    def _name(self, facts: StreamFacts) -> bytes:
        """Half of a source's name: which making of the stream it is. The other half tells rollbacks apart."""
        created = facts.created.isoformat().encode()
        return sha256(domain("source") + self._store.log_id + created).digest()[:_HALF]
