"""What the ledger owes its log of others' faults: all of it is said once there is room, whatever dies in between."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from libs.errors import MeshError
from libs.events.consume import StreamGap
from libs.events.outbox import OutboxFull
from libs.transparency.leaf import Kind
from services.ledger.intake.faults import Saying, contradicted, lost, quarantined
from services.ledger.intake.owed import NAME, Owed, Part, Paying
from services.ledger.intake.rejections import Reason, Refusal
from services.ledger.intake.sequencer import Candidate, Outcome, Verdict
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.lost_and_found import LOST_AND_FOUND
from tests.fakes.entry_schema import require_documented

ISSUER = b"\x0a" * 32
SOURCE = b"\x01" * 16


class Outbox:
    """An outbox that takes what is documented, as long as it has room."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.refused, self.came = asyncio.Event(), asyncio.Event()
        self.said: list[Saying] = []

    async def enqueue(self, kind: Kind, body: Mapping[str, Any], *, vault: None) -> None:
        if len(self.said) >= self.room:
            self.refused.set()
            raise OutboxFull("no room")
        require_documented(kind, body)
        self.said.append(Saying(kind, body))
        self.came.set()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.said) < count:
                self.came.clear()
                await self.came.wait()


class Watched(Owed):
    """Says when something is owed no more."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._loop, self._settled = asyncio.get_running_loop(), asyncio.Event()

    def settle(self, part: Part) -> None:
        super().settle(part)
        self._loop.call_soon_threadsafe(self._settled.set)

    async def paid(self) -> None:
        async with asyncio.timeout(20):
            while self.first() is not None:
                self._settled.clear()
                await self._settled.wait()


def refusals(count: int) -> list[Saying]:
    return [quarantined(Refusal(1, Reason.KIND_NOT_ALLOWED, "", b"", ISSUER, number)) for number in range(1, count + 1)]


def numbers(outbox: Outbox) -> list[int | str]:
    return sorted(saying.body["issuer_seq"] for saying in outbox.said)


@asynccontextmanager
async def paying(owed: Owed, outbox: Outbox) -> AsyncIterator[None]:
    """Say what is owed while the body runs; it ends as a killed process would."""
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(Paying(owed, outbox).keep())
        try:
            yield
        finally:
            task.cancel()


async def test_faults_are_said_as_they_are_documented_and_owed_no_more(tmp_path: Path) -> None:
    outbox = Outbox()
    candidate = Candidate(Kind.RECEIPT, ISSUER, 5, b"\x02" * 32, 1, b"\x03" * 16, b"")
    conflict = contradicted(Verdict(candidate, Outcome.CONFLICT, 1, b"\x04" * 32))
    with closing(Watched(tmp_path)) as owed:
        async with paying(owed, outbox):
            owed.add([lost(SOURCE, StreamGap(4, 9)), conflict, *refusals(1)])
            owed.wake()
            await outbox.has(3)
            await owed.paid()
    assert outbox.said == [lost(SOURCE, StreamGap(4, 9)), conflict, *refusals(1)]
    assert (tmp_path / NAME).stat().st_size == 0


async def test_a_flood_that_fills_the_outbox_keeps_nothing_out_of_the_log(tmp_path: Path) -> None:
    outbox = Outbox(room=10)
    with closing(Watched(tmp_path)) as owed:
        async with paying(owed, outbox):
            for saying in refusals(300):
                owed.add([saying])
            owed.add([lost(SOURCE, StreamGap(4, 9))])
            owed.wake()
            await outbox.refused.wait()
            assert len(outbox.said) == 10
            outbox.room = 301
            await outbox.has(301)
            await owed.paid()
    assert outbox.said.pop() == lost(SOURCE, StreamGap(4, 9))
    assert numbers(outbox) == list(range(1, 301))


async def test_the_next_process_says_what_this_one_did_not(tmp_path: Path) -> None:
    first, second = Outbox(room=128), Outbox()
    with closing(Watched(tmp_path)) as owed:
        async with paying(owed, first):
            owed.add(refusals(300))
            owed.wake()
            await first.refused.wait()
    with closing(Watched(tmp_path)) as owed:
        async with paying(owed, second):
            await second.has(172)
            await owed.paid()
    assert numbers(first) == list(range(1, 129))
    assert numbers(second) == list(range(129, 301))


async def test_a_record_that_was_being_written_is_cut_and_damage_before_it_is_refused(tmp_path: Path) -> None:
    with closing(Watched(tmp_path)) as owed:
        for each in refusals(2):
            owed.add([each])
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:-1])
    with closing(Watched(tmp_path)) as owed:
        assert (part := owed.first()) is not None
        assert part.sayings == refusals(2)[:1]
    [saved] = (tmp_path / LOST_AND_FOUND).iterdir()
    assert whole[:-1].endswith(saved.read_bytes())
    (tmp_path / NAME).write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    with pytest.raises(MeshError) as refusal:
        Owed(tmp_path)
    assert refusal.value.reason == "LOG_DAMAGED"


def test_what_is_owed_and_changes_before_it_is_said_is_damage(tmp_path: Path) -> None:
    with closing(Owed(tmp_path)) as owed:
        owed.add(refusals(1))
        between = (tmp_path / NAME).stat().st_size
        owed.add(refusals(2)[1:])
        data = bytearray((tmp_path / NAME).read_bytes())
        data[between + 20] ^= 1
        (tmp_path / NAME).write_bytes(data)
        part = owed.first()
        assert part is not None
        assert part.sayings == refusals(1)
        owed.settle(part)
        with pytest.raises(LogDamaged, match=f"{NAME} is damaged at byte {between}"):
            owed.first()


def test_what_is_owed_is_synced_when_it_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Owed(tmp_path)) as owed:
        synced: list[tuple[int, int]] = []
        sync = os.fdatasync

        def told(descriptor: int) -> None:
            sync(descriptor)
            found = os.fstat(descriptor)
            synced.append((found.st_ino, found.st_size))

        monkeypatch.setattr(os, "fdatasync", told)
        owed.add([lost(SOURCE, StreamGap(1, 2))])
        held = (tmp_path / NAME).stat()
        assert synced == [(held.st_ino, held.st_size)]
