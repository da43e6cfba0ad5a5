"""Reading the log out: whole, in order, from a token that nobody can forge and that notices a rollback."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from libs.transparency import resume
from libs.transparency.chain import chain_next, chain_start
from libs.transparency.leaf import Kind
from libs.transparency.merkle import leaf_hash
from libs.transparency.resume import LogDiverged, ResumeTokenInvalid
from services.ledger.checkpoints.auditing import AuditorProcess, Checkpoints
from services.ledger.growth import Growth, LogBehind
from services.ledger.intake.sequencer import Candidate
from services.ledger.keys import ReleasedKey
from services.ledger.serving.tail import KEY_NAME, Tail, TailBatch
from services.ledger.storage import segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.selection import Selection, SelectionMalformed
from services.ledger.storage.store import LogStore

from .conftest import ORIGIN, SOURCE, candidate, fill, open_store, sequencer
from .writers import Keys

ALL = Selection()
KEY = ReleasedKey(2, b"\x05" * 32)


class Unused(AuditorProcess):
    """Nothing is signed here."""

    def __init__(self) -> None:
        return None


async def _nothing() -> None:
    return None


class Reader:
    """A tail over a store, as a start of the ledger makes it."""

    def __init__(self, store: LogStore, key: ReleasedKey = KEY) -> None:
        self.store = store
        self.growth = Growth(store.head.size, store.head.root())
        self.keys = Keys()
        self.tail = Tail(store, self.growth, Checkpoints(Unused(), self.growth, _nothing, 1.0), self.keys, key)

    async def read(self, start: int | bytes, *, max_batch: int = 64, selection: Selection = ALL) -> list[TailBatch]:
        position = await (self.tail.from_token(start) if isinstance(start, bytes) else self.tail.from_index(start))
        reading = self.tail.read(position, follow=False, max_batch=max_batch, selection=selection)
        return [batch async for batch in reading]

    def append(self, *numbers: int) -> None:
        self.append_all([candidate(n) for n in numbers])

    def append_kind(self, number: int, kind: Kind) -> None:
        self.append_all([candidate(number, kind=kind)])

    def append_all(self, candidates: list[Candidate]) -> None:
        position = self.store.head.source_high + 1
        commit = sequencer(self.store).append(candidates, SOURCE, position, position)[-1]
        self.growth.reach(commit.size, commit.root)


@pytest.fixture
def reader(two_segments: Path) -> Iterator[Reader]:
    with open_store(two_segments) as store:
        yield Reader(store)


async def test_a_tail_is_the_whole_log_and_its_chain(reader: Reader) -> None:
    batches = await reader.read(0, max_batch=4)
    entries = [stored for batch in batches for stored in batch.entries]
    assert [len(batch.entries) for batch in batches] == [4, 2]
    assert [stored.row.body for stored in entries] == [candidate(n).body for n in range(1, 7)]
    head = chain_start(ORIGIN)
    for stored in entries:
        head = chain_next(head, stored.index, leaf_hash(stored.row.leaf_data))
    assert batches[-1].chain_after == head == reader.store.head.chain
    assert batches[-1].log_size == 6


async def test_a_batch_holds_no_more_than_may_wait_for_a_reader_that_stands_still(reader: Reader) -> None:
    reader.append_all([candidate(n, body=bytes(30_000)) for n in (7, 8, 9, 10)])
    reader.append_all([candidate(n, body=bytes(200_000)) for n in (11, 12)])
    batches = await reader.read(6)
    assert [len(batch.entries) for batch in batches] == [2, 2, 1, 1]


async def test_a_token_goes_on_exactly_after_what_it_covers(reader: Reader) -> None:
    first, *_ = await reader.read(0, max_batch=3)
    rest = await reader.read(first.token)
    assert [stored.index for batch in rest for stored in batch.entries] == [3, 4, 5]
    (end,) = await reader.read(rest[-1].token)
    assert (end.entries, end.log_size) == ((), 6)


async def test_following_sees_what_is_appended(reader: Reader) -> None:
    position = await reader.tail.from_index(6)
    async with aclosing(reader.tail.read(position, follow=True, max_batch=64)) as batches, asyncio.timeout(20):
        assert (await anext(batches)).entries == ()
        waiting = asyncio.ensure_future(_next(batches))
        reader.append(7, 8)
        batch = await waiting
    assert [stored.row.body for stored in batch.entries] == [candidate(7).body, candidate(8).body]


async def _next(batches: AsyncIterator[TailBatch]) -> TailBatch:
    return await anext(batches)


async def test_a_change_of_any_byte_of_a_token_is_refused(reader: Reader) -> None:
    token = (await reader.read(0))[-1].token
    for at in range(len(token)):
        forged = token[:at] + bytes([token[at] ^ 1]) + token[at + 1 :]
        with pytest.raises(ResumeTokenInvalid):
            await reader.tail.from_token(forged)
    for length in range(len(token)):
        with pytest.raises(ResumeTokenInvalid):
            await reader.tail.from_token(token[:length])


async def test_a_token_of_another_log_is_refused(reader: Reader) -> None:
    position = resume.Position(0, chain_start("other.example/ledger/1"))
    token = resume.seal(position, log_id=b"\x07" * 32, key_epoch=KEY.epoch, key=KEY.key)
    with pytest.raises(ResumeTokenInvalid):
        await reader.tail.from_token(token)


async def test_tokens_of_earlier_key_epochs_open_and_of_later_ones_never_reach_the_kms(reader: Reader) -> None:
    position = await reader.tail.from_index(2)
    old = await reader.keys.release(KEY_NAME, 1)
    token = resume.seal(position, log_id=reader.store.log_id, key_epoch=1, key=old.key)
    assert await reader.tail.from_token(token) == position
    reader.keys.asked.clear()
    for epoch in (0, 3, 2**32 - 1):
        with pytest.raises(ResumeTokenInvalid):
            await reader.tail.from_token(resume.seal(position, log_id=reader.store.log_id, key_epoch=epoch, key=b"x"))
    assert not reader.keys.asked


async def test_a_log_that_was_rolled_back_is_noticed(empty_log: Path, tmp_path: Path) -> None:
    shutil.copytree(empty_log, tmp_path / "image")
    fill(empty_log, [[1], [2, 3]])
    with open_store(empty_log) as store:
        token = (await Reader(store).read(0))[-1].token
    with open_store(tmp_path / "image") as store, pytest.raises(LogDiverged):
        await Reader(store).read(token)
    fill(tmp_path / "image", [[4, 5, 6], [7]])  # As long as before and longer, but another history.
    with open_store(tmp_path / "image") as store, pytest.raises(LogDiverged):
        await Reader(store).read(token)


async def test_an_index_beyond_the_log_is_a_log_that_diverged(reader: Reader) -> None:
    with pytest.raises(LogDiverged):
        await reader.tail.from_index(7)


async def test_a_tail_of_some_kinds_has_those_alone_and_all_the_places(reader: Reader) -> None:
    reader.append_kind(7, Kind.KEY_DECISION)
    reader.append(8)
    decisions = Selection(kinds=frozenset({Kind.KEY_DECISION}))
    batches = await reader.read(0, max_batch=2, selection=decisions)
    assert [stored.index for batch in batches for stored in batch.entries] == [6]
    assert batches[-1].chain_after == reader.store.head.chain
    (end,) = await reader.read(batches[-1].token, selection=decisions)
    assert end.entries == ()
    nothing = await reader.read(0, max_batch=2, selection=Selection(kinds=frozenset({Kind.SESSION})))
    assert [(batch.entries, batch.token) for batch in nothing] == [((), batches[-1].token)]


VAULT, ISSUER = b"\x55" * 16, b"\x12" * 32


async def test_a_tail_of_a_vault_an_issuer_and_kinds_has_what_is_all_of_these(reader: Reader) -> None:
    """Over sealed segments and the growing one alike."""
    made = [
        replace(candidate(number, vault=VAULT if number % 2 else bytes(16), kind=kind), issuer=issuer)
        for number in range(11, 17)
        for kind, issuer in (((Kind.RECEIPT, ISSUER), (Kind.USAGE, candidate(1).issuer))[number % 3 == 0],)
    ]
    reader.append_all(made)
    everything = [stored for batch in await reader.read(0) for stored in batch.entries]
    kinds = frozenset({Kind.RECEIPT, Kind.POLICY})
    for selection in (
        Selection(vault_id=VAULT),
        Selection(issuer=ISSUER),
        Selection(kinds=kinds, vault_id=bytes(16)),
        Selection(kinds=kinds, vault_id=VAULT, issuer=ISSUER),
        Selection(vault_id=b"\x56" * 16),
    ):
        expected = [
            stored.index
            for stored in everything
            if (not selection.kinds or stored.leaf.kind in selection.kinds)
            and (not selection.vault_id or stored.row.vault_id == selection.vault_id)
            and (not selection.issuer or stored.leaf.issuer == selection.issuer)
        ]
        for max_batch in (1, 2, 64):
            batches = await reader.read(0, max_batch=max_batch, selection=selection)
            assert [stored.index for batch in batches for stored in batch.entries] == expected
            for batch in batches:
                # Each token is one of the whole log's places, so that a rollback is noticed from it.
                await reader.tail.from_token(batch.token)
            assert batches[-1].chain_after == reader.store.head.chain


@pytest.mark.parametrize(
    "malformed", [{"vault_id": b"short"}, {"issuer": b"short"}, {"kinds": frozenset({256})}], ids=str
)
def test_a_selection_that_could_select_nothing_is_refused(malformed: dict[str, Any]) -> None:
    with pytest.raises(SelectionMalformed):
        Selection(**malformed)


async def test_entries_that_are_not_selected_are_not_read(reader: Reader, two_segments: Path) -> None:
    reader.append_kind(7, Kind.KEY_DECISION)
    path = two_segments / SEGMENTS / segments.file_name(0)
    data = bytearray(path.read_bytes())
    data[data.index(candidate(2).body)] ^= 1
    path.write_bytes(data)
    batches = await reader.read(0, selection=Selection(kinds=frozenset({Kind.KEY_DECISION})))
    assert [stored.index for batch in batches for stored in batch.entries] == [6]
    with pytest.raises(LogDamaged):
        await reader.read(0)


async def test_following_some_kinds_opens_no_segment_while_others_grow(reader: Reader, two_segments: Path) -> None:
    position = await reader.tail.from_index(6)
    reader.append(7, 8)
    reader.append(9)
    (two_segments / SEGMENTS).rename(two_segments / "away")
    sessions = Selection(kinds=frozenset({Kind.SESSION}))
    reading = reader.tail.read(position, follow=False, max_batch=1, selection=sessions)
    assert [batch.chain_after async for batch in reading] == [reader.store.head.chain]
    (two_segments / "away").rename(two_segments / SEGMENTS)


@pytest.mark.parametrize("start", range(7))
async def test_the_chain_goes_on_from_any_place_as_it_is_read(reader: Reader, start: int) -> None:
    before = reader.store.reader.chain_at(start)
    for end in range(start, 7):
        assert reader.store.reader.chain_on(before, start, end) == reader.store.reader.chain_at(end)


async def test_a_place_beyond_what_a_member_knows_of_is_no_divergence(reader: Reader) -> None:
    token = (await reader.read(0))[-1].token
    reader.growth.size, reader.growth.is_all = 3, lambda: False
    for start in (token, reader.store.head.size):
        with pytest.raises(LogBehind):
            await reader.read(start)


async def test_a_member_that_hears_of_no_growth_does_not_say_that_all_is_quiet(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ledger.serving.tail.HEARTBEAT_SECONDS", 0.0)
    position = await reader.tail.from_index(reader.growth.size)
    reading = reader.tail.read(position, follow=True, max_batch=1)
    async with aclosing(reading) as batches, asyncio.timeout(20):
        for _ in range(3):
            assert not (await anext(batches)).entries
        reader.growth.is_told = lambda: False
        with pytest.raises(LogBehind):
            await anext(batches)


async def _turns() -> None:
    """Let whoever is woken come to where it waits again."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_follows_some_kinds_gets_one_that_comes_after_others(reader: Reader) -> None:
    position = await reader.tail.from_index(6)
    sessions = Selection(kinds=frozenset({Kind.SESSION}))
    reading = reader.tail.read(position, follow=True, max_batch=1, selection=sessions)
    async with aclosing(reading) as batches, asyncio.timeout(5):
        assert not (await anext(batches)).entries
        for number in (7, 10):
            waiting = asyncio.create_task(anext(batches))
            await _turns()
            for other in (number, number + 1):
                reader.append(other)
                await _turns()
            assert not waiting.done()
            reader.append_kind(number + 2, Kind.SESSION)
            batch = await waiting
            assert [stored.index for stored in batch.entries] == [number + 1]
            assert batch.chain_after == reader.store.head.chain
            position = resume.verify(batch.token, log_id=reader.store.log_id, key=KEY.key)
            assert position.next_index == number + 2


async def test_who_follows_some_kinds_hears_of_life_while_others_grow(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ledger.serving.tail.HEARTBEAT_SECONDS", 0.0)
    position = await reader.tail.from_index(0)
    sessions = Selection(kinds=frozenset({Kind.SESSION}))
    reading = reader.tail.read(position, follow=True, max_batch=1, selection=sessions)
    async with aclosing(reading) as batches, asyncio.timeout(20):
        assert (await anext(batches)).chain_after == reader.store.head.chain
        for number in (7, 8):
            reader.append(number)
            assert (await anext(batches)).chain_after == reader.store.head.chain
