"""The log read out by its own frames: nothing that entries would not show, and bounded whoever reads slowly."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence, Set
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from teemesh.ledger.v1 import ledger_pb2

from libs.events.whole_frames import entries_of
from libs.transparency.leaf import Kind
from services.ledger.intake.sequencer import Candidate
from services.ledger.serving.tail import FramesNotSelectable, Tail, TailBatch
from services.ledger.serving.whole import AreOpen
from services.ledger.storage import segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.frames import Row, encode, parse_header
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.selection import Selection
from services.ledger.storage.store import LogStore

from .conftest import SOURCE, candidate, open_store, sequencer
from .test_tail import Reader

FRAMES = [[1], [2, 3, 4], [5], [6]]
SEALED, MONTH = 3, (600, b"\x55" * 16)


def entry(number: int) -> Candidate:
    public = candidate(number, body=b"salt and entry %d" % number + bytes(32))
    if number != SEALED:
        return public
    return replace(public, kind=Kind.RECEIPT, vault_epoch=MONTH[0], vault_id=MONTH[1], commitment=b"\x66" * 32)


@pytest.fixture
def store(empty_log: Path) -> Iterator[LogStore]:
    """Six entries in four frames, one a tenant's: two frames in a sealed segment, two in the active one."""
    with open_store(empty_log) as opened:
        for position, numbers in enumerate(FRAMES, 1):
            sequencer(opened).append([entry(number) for number in numbers], SOURCE, position, position)
        yield opened


def all_but(closed: Set[tuple[int, bytes]]) -> AreOpen:
    async def are_open(frames: Sequence[Set[tuple[int, bytes]]]) -> list[bool]:
        return [months.isdisjoint(closed) for months in frames]

    return are_open


all_open = all_but(frozenset())


async def following(tail: Tail, start: int | bytes, are_open: AreOpen = all_open) -> AsyncGenerator[TailBatch, None]:
    position = await (tail.from_token(start) if isinstance(start, bytes) else tail.from_index(start))
    return tail.read(position, follow=False, max_batch=64, are_open=are_open)


async def read(tail: Tail, start: int | bytes, are_open: AreOpen = all_open) -> list[TailBatch]:
    return [batch async for batch in await following(tail, start, are_open)]


def indices(batches: list[TailBatch], start: int) -> list[int]:
    """What a reader takes from messages: of entries and frames alike, in order."""
    found: list[int] = []
    for batch in batches:
        given = [stored.index for stored in batch.entries]
        if batch.frames:
            message = ledger_pb2.TailResponse(frames=batch.frames, chain_after=batch.chain_after)
            given = [each.index for each in entries_of(message, start + len(found))]
        found += given
    return found


async def test_frames_are_the_segments_bytes_and_lead_to_the_head(store: LogStore) -> None:
    batches = await read(Reader(store).tail, 0)
    (batch,) = batches
    assert (len(batch.frames), batch.entries) == (4, ())
    assert batch.chain_after == store.head.chain
    files = b"".join(path.read_bytes() for path in sorted((store.directory / SEGMENTS).iterdir()))
    assert all(frame in files for frame in batch.frames)
    assert indices(batches, 0) == list(range(6))


@pytest.mark.parametrize("start", range(6))
async def test_a_reader_that_stands_inside_a_frame_gets_that_frame(store: LogStore, start: int) -> None:
    reader = Reader(store)
    token = (await reader.read(0, max_batch=start))[0].token if start else 0
    for place in (start, token):
        batches = await read(reader.tail, place)
        assert indices(batches, start) == list(range(start, 6))
        assert batches[-1].chain_after == store.head.chain
        (end,) = await read(reader.tail, batches[-1].token)
        assert (end.frames, end.entries) == ((), ())


async def test_a_frame_with_a_closed_month_is_read_out_by_entries(store: LogStore) -> None:
    batches = await read(Reader(store).tail, 0, all_but({MONTH}))
    assert not any(parse_header(frame).first == 1 for batch in batches for frame in batch.frames)
    assert [stored.index for batch in batches for stored in batch.entries][:3] == [1, 2, 3]
    assert len(batches[0].frames) == 1
    assert indices(batches, 0) == list(range(6))


async def test_what_is_closed_while_the_log_is_read_goes_out_no_more(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ledger.serving.whole._MESSAGE_BYTES", 1)
    closed: set[tuple[int, bytes]] = set()
    reading = await following(Reader(store).tail, 0, all_but(closed))
    first = await anext(reading)
    closed.add(MONTH)
    batches = [first, *[batch async for batch in reading]]
    assert not any(parse_header(frame).first == 1 for batch in batches for frame in batch.frames)
    assert indices(batches, 0) == list(range(6))


async def test_frames_are_not_for_who_selects(store: LogStore) -> None:
    tail = Reader(store).tail
    selection = Selection(kinds=frozenset({Kind.POLICY}))
    reading = tail.read(await tail.from_index(0), follow=False, max_batch=64, selection=selection, are_open=all_open)
    with pytest.raises(FramesNotSelectable):
        await anext(reading)


async def test_a_frame_of_which_not_all_counts_is_not_shown(store: LogStore) -> None:
    reader = Reader(store)
    reader.growth.size = 3
    batches = await read(reader.tail, 0)
    assert [len(batch.frames) for batch in batches] == [1, 0]
    assert indices(batches, 0) == [0, 1, 2]


async def test_a_frame_that_no_message_holds_is_read_out_by_entries(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ledger.serving.whole._MAX_BYTES", 600)
    batches = await read(Reader(store).tail, 0)
    assert all(len(frame) <= 600 for batch in batches for frame in batch.frames)
    assert {stored.index for batch in batches for stored in batch.entries} >= {1, 2, 3}
    assert indices(batches, 0) == list(range(6))


async def test_every_changed_byte_of_a_frame_is_noticed_before_it_goes_out(store: LogStore) -> None:
    path = store.directory / SEGMENTS / segments.file_name(0)
    data = path.read_bytes()
    (batch,) = await read(Reader(store).tail, 0)
    start = data.index(batch.frames[1])
    for at in range(start, start + len(batch.frames[1])):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(LogDamaged):
            await read(Reader(store).tail, 1)


def other_leaf(row: Row) -> Row:
    return replace(row, leaf_data=row.leaf_data[:-1] + bytes([row.leaf_data[-1] ^ 1]))


def other_body(row: Row) -> Row:
    return replace(row, body=row.body[::-1])


@pytest.mark.parametrize(
    ("changed", "why"), [(other_leaf, "leaves of the frame"), (other_body, "says other than its leaf")]
)
async def test_a_frame_that_was_made_anew_is_not_given_out(
    store: LogStore, changed: Callable[[Row], Row], why: str
) -> None:
    """Whole by its own hashes, and of the same length."""
    frame = store.reader.frame(store.index.place(1))
    rows = [changed(frame.rows[0]), *frame.rows[1:]]
    forged, _ = encode(frame.header, rows, frame.chain_after, frame.root_after)
    path = store.directory / SEGMENTS / segments.file_name(0)
    data = path.read_bytes()
    at = data.index(frame.header.pack())
    path.write_bytes(data[:at] + forged + data[at + len(forged) :])
    with pytest.raises(LogDamaged, match=why):
        await read(Reader(store).tail, 0)


async def test_what_waits_for_slow_readers_is_bounded_and_given_free(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred who take one message and no more: frames wait up to the bound, and nobody is refused."""
    reader = Reader(store)
    whole = sum(len(frame) for frame in (await read(reader.tail, 0))[0].frames)
    monkeypatch.setattr("services.ledger.serving.whole._WAITING_BYTES", 10 * whole)
    async with AsyncExitStack() as slow:
        taken = [
            await anext(await slow.enter_async_context(aclosing(await following(reader.tail, 0)))) for _ in range(100)
        ]
        assert [len(batch.frames) for batch in taken] == [4] * 10 + [0] * 90
        assert all(batch.frames or batch.entries for batch in taken)
        assert indices(await read(reader.tail, 0), 0) == list(range(6))
    assert [len(batch.frames) for batch in await read(reader.tail, 0)] == [4]
