"""Where reading goes on: from the log's own place, unless the stream is not the one it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from libs.events.consume import StreamFacts, StreamMessage
from libs.transparency.leaf import Kind
from services.ledger.intake.position import Position, Start
from services.ledger.intake.rejections import Reason, Refusal, Rejections
from services.ledger.intake.sequencer import Candidate
from services.ledger.storage.store import LogStore
from tests.fakes.joined_mesh import JoinedMesh, KmsCore

from .conftest import open_store, sequencer
from .writers import LogWriter

FACTS = StreamFacts(datetime(2026, 1, 1, tzinfo=UTC), 1, 2)


class Stream:
    """What the broker holds."""

    def __init__(self, *messages: bytes) -> None:
        self.messages = dict(enumerate(messages, 1))

    async def read(self, sequence: int) -> StreamMessage | None:
        data = self.messages.get(sequence)
        return None if data is None else StreamMessage(sequence, data, 0)


class Logged:
    """A log that has read two messages of a stream: a keyset and a receipt."""

    def __init__(self, store: LogStore, rejections: Rejections, writer: LogWriter) -> None:
        self.store, self.rejections, self.writer = store, rejections, writer
        self.position = Position(store, rejections, lambda issuer: issuer == writer.issuer.id)
        keyset, self.entry = writer.introduce(), writer.seal(Kind.ADMISSION)
        self.stream = Stream(writer.batch(keyset), writer.batch(self.entry))
        self._candidates = [
            Candidate(h.kind, writer.issuer.id, n, h.commitment, h.vault_epoch, h.vault_id, each.record.body)
            for n, each in enumerate((keyset, self.entry), 1)
            for h in (each.record.header,)
        ]

    async def begin(self) -> Start:
        start = await self.position.compare(replace(FACTS, last_seq=0), self.stream.read)
        sequencer(self.store).append(self._candidates, start.source, 1, 2)
        return start


@pytest.fixture
def logged(empty_log: Path, mesh: JoinedMesh, kms: KmsCore) -> Iterator[Logged]:
    with open_store(empty_log) as store:
        yield Logged(store, Rejections(empty_log), LogWriter(mesh, kms, "kms"))


async def test_an_empty_log_begins_with_the_stream(logged: Logged) -> None:
    start = await logged.position.compare(StreamFacts(FACTS.created, 41, 50), logged.stream.read)
    assert start.after == 40
    assert len(start.source) == 16


async def test_reading_goes_on_where_the_log_stands(logged: Logged) -> None:
    begun = await logged.begin()
    assert await logged.position.compare(FACTS, logged.stream.read) == Start(begun.source, 2)


async def test_what_was_purged_below_the_logs_place_changes_nothing(logged: Logged) -> None:
    begun = await logged.begin()
    facts = StreamFacts(FACTS.created, 3, 9)
    assert await logged.position.compare(facts, Stream().read) == Start(begun.source, 2)


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(replace(FACTS, created=datetime(2026, 1, 2, tzinfo=UTC)), id="made anew"),
        pytest.param(replace(FACTS, last_seq=1), id="shorter"),
    ],
)
async def test_another_stream_is_a_new_source_read_from_its_first(logged: Logged, facts: StreamFacts) -> None:
    begun = await logged.begin()
    start = await logged.position.compare(facts, logged.stream.read)
    assert start.after == 0
    assert start.source != begun.source


async def test_a_message_that_is_gone_is_a_rollback(logged: Logged) -> None:
    begun = await logged.begin()
    del logged.stream.messages[2]
    assert (await logged.position.compare(FACTS, logged.stream.read)).source != begun.source


async def test_a_number_that_was_used_again_is_a_rollback(logged: Logged) -> None:
    begun = await logged.begin()
    other = logged.writer.seal(Kind.ADMISSION)
    logged.stream.messages[2] = logged.writer.batch(other)
    assert (await logged.position.compare(FACTS, logged.stream.read)).source != begun.source


async def test_a_message_that_was_refused_is_no_rollback(logged: Logged) -> None:
    begun = await logged.begin()
    refused = logged.writer.seal(Kind.ADMISSION)
    logged.stream.messages[2] = logged.writer.batch(refused)
    logged.rejections.keep(
        [Refusal(2, Reason.KIND_NOT_ALLOWED, "why", b"", logged.writer.issuer.id, refused.issuer_seq)]
    )
    assert (await logged.position.compare(FACTS, logged.stream.read)).source == begun.source
    logged.stream.messages[2] = b"no batch at all"
    assert (await logged.position.compare(FACTS, logged.stream.read)).source == begun.source
