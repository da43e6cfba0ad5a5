"""Responsible for how fast the ledger takes in receipts: the commit path, the way from a stream to durable, answers.

The limits beside it are this machine's own: writing the same bytes and syncing them, and pulling the same messages from
the same broker and doing nothing else.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from nats.js.api import AckPolicy, ConsumerConfig

from libs.events.connect import NatsLink, connect_nats
from libs.events.consume import StreamMessage, ensure_stream
from libs.events.subjects import issuer_subject, message_id, stream_name
from services.devtee.machine import Machine
from services.ledger.intake.examining import ExaminerProcess, open_examiner
from services.ledger.intake.position import Position, Start
from services.ledger.intake.sequencer import Candidate
from services.ledger.intake.stream import Intake
from services.ledger.storage import frames
from tests.bench.ledger import commit, synced_write, writing
from tests.bench.ledger_inside import Inside, Receipts, ledger_inside
from tests.bench.report import Row, Section
from tests.bench.samples import Action, Limit, Pairs, Samples, in_pairs, side_by_side
from tests.fakes.joined_mesh import JoinedMesh
from tests.fakes.let_in import LetIn
from tests.fakes.nats_broker import nats_broker
from tests.fakes.throwaway_ca import ThrowawayCa
from tests.mesh.running import RunningMesh

_GROUP = 256
_PAIRS = 10
_IN_A_ROW = 6
_GROUPS = (_PAIRS + 1) * _IN_A_ROW
_STREAMED = 24_576
"""Receipts that are read from the stream each time: enough for the reading's beginning and end to weigh little."""
_PER_SECOND = 1000
_SECONDS = 60.0
_SOURCE = b"\x51" * 16
_STREAM_BYTES = 256 * 1024 * 1024

Part = Callable[[Inside, list[Candidate]], None]


async def measure(mesh: RunningMesh, folder: Path, *, seconds: float) -> Section:
    """Some 40 seconds, of which `seconds` are for latency."""
    writers = JoinedMesh(folder, Machine.create(int(time.time())))
    async with open_examiner() as examiner:
        taken = [
            await _part(writers, examiner, folder / "append", "append", _append),
            await _part(writers, examiner, folder / "path", "judge, append, sign", _judge_append_sign),
            await _everything(writers, examiner, folder / "all"),
            await _streaming(writers, examiner, _made(folder / "of-64"), 64),
            await _streaming(writers, examiner, _made(folder / "of-256"), 256),
        ]
    return Section(
        "ledger intake",
        "the frame's bytes written and synced; the same messages pulled and dropped; one 4 KiB write and fdatasync",
        f"groups of {_GROUP} receipts of about 1 KB; {_STREAMED} receipts from JetStream to durable; one receipt "
        "committed by a member of the mesh, from the moment it was due",
        [*(each.row for each in taken), await _latency(mesh, folder, seconds)],
        [each.note() for each in taken],
    )


@dataclass(frozen=True, slots=True)
class _Taken:
    """Throughput, and what of it is this process's own work, the examiner's aside: that tells more where others were
    working too.
    """

    name: str
    pairs: Pairs
    cpu: list[float]
    receipts: int
    """In one sample."""

    @property
    def row(self) -> Row:
        return Row(self.name, self.pairs.base, self.pairs.ours)

    def note(self) -> str:
        cpu = statistics.median(self.cpu) / self.receipts * 1e6
        rate = self.pairs.ours.rate * self.receipts
        ratio = f"{self.pairs.median_ratio:.2f}x the base"
        return f"{self.name}: {rate:,.0f} receipts/s, {ratio}, {cpu:.1f} us of CPU each, the examiner aside"


async def _beside(name: str, base: Action, ours: Action, receipts: int, in_a_row: int) -> _Taken:
    cpu: list[float] = []

    async def act() -> None:
        began = time.process_time()
        await ours()
        cpu.append(time.process_time() - began)

    return _Taken(name, await in_pairs(base, act, pairs=_PAIRS, in_a_row=in_a_row), cpu, receipts)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _append(ledger: Inside, candidates: list[Candidate]) -> None:
    place = ledger.store.head.source_high + 1
    ledger.sequencer.append(candidates, _SOURCE, place, place)


def _judge_append_sign(ledger: Inside, candidates: list[Candidate]) -> None:
    new = [verdict.candidate for verdict in ledger.sequencer.judge(candidates)]
    place = ledger.store.head.source_high + 1
    for written in ledger.sequencer.append(new, _SOURCE, place, place):
        ledger.acknowledgements.deliver(ledger.acknowledgements.sign(written))


def _candidates(receipts: Receipts) -> Iterator[list[Candidate]]:
    """Groups that are taken for admitted."""
    for _ in range(_GROUPS):
        yield [
            Candidate(
                each.record.header.kind,
                receipts.issuer,
                each.issuer_seq,
                each.record.header.commitment,
                each.record.header.vault_epoch,
                each.record.header.vault_id,
                each.record.body,
            )
            for each in receipts.sealed(_GROUP)
        ]


async def _part(writers: JoinedMesh, examiner: ExaminerProcess, folder: Path, name: str, do: Part) -> _Taken:
    """A part of the commit path, in the thread that it has in the ledger."""
    kms = writers.kms()
    groups = iter(list(_candidates(Receipts(writers, kms))))
    with ledger_inside(folder, writers, kms, examiner) as ledger, _bare_writes(folder, _frame_bytes(writers)) as bare:

        async def act() -> None:
            await asyncio.get_running_loop().run_in_executor(ledger.thread, do, ledger, next(groups))

        return await _beside(name, bare, act, _GROUP, _IN_A_ROW)


async def _everything(writers: JoinedMesh, examiner: ExaminerProcess, folder: Path) -> _Taken:
    """Messages of 64 receipts, four at once, as they come from the stream."""
    kms = writers.kms()
    receipts, now = Receipts(writers, kms), int(time.time() * 1000)
    waiting = [StreamMessage(at, data, now) for at, data in enumerate(receipts.messages(_GROUPS * _GROUP, 64), 2)]
    groups = (waiting[at : at + _GROUP // 64] for at in count(0, _GROUP // 64))
    with ledger_inside(folder, writers, kms, examiner) as ledger, _bare_writes(folder, _frame_bytes(writers)) as bare:
        ledger.committing.begin(Start(_SOURCE, 0))
        await ledger.committing.commit(await ledger.arrivals.read([StreamMessage(1, receipts.introduction, now)]))

        async def act() -> None:
            await ledger.committing.commit(await ledger.arrivals.read(next(groups)))

        taken = await _beside("parse, verify, open, commit", bare, act, _GROUP, _IN_A_ROW)
        _require_size(ledger, 1 + _GROUPS * _GROUP)
    return taken


def _frame_bytes(writers: JoinedMesh) -> int:
    (sealed,) = Receipts(writers, writers.kms()).sealed(1)
    return frames.HEADER_SIZE + _GROUP * (frames.ROW_SIZE + len(sealed.record.body)) + frames.TRAILER_SIZE


@contextmanager
def _bare_writes(folder: Path, size: int) -> Iterator[Action]:
    """Write and sync so many bytes, in a thread as the ledger does, to a file that was filled before."""
    data, places = os.urandom(size), count()
    file = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for place in range(_GROUPS):
        os.pwrite(file, data, place * size)
    os.fsync(file)

    def write() -> None:
        os.pwrite(file, data, next(places) * size)
        os.fdatasync(file)

    with ThreadPoolExecutor(1) as thread:

        async def act() -> None:
            await asyncio.get_running_loop().run_in_executor(thread, write)

        yield act
    os.close(file)


async def _streaming(writers: JoinedMesh, examiner: ExaminerProcess, folder: Path, each: int) -> _Taken:
    """The whole way of messages that wait in a stream, to a new log every time, which was made before."""
    kms = writers.kms()
    receipts = Receipts(writers, kms)
    messages = [receipts.introduction, *receipts.messages(_STREAMED, each)]
    folders = [folder / f"log-{number}" for number in range(_PAIRS + 1)]
    async with _stream(folder) as link:
        await _publish(link, receipts.issuer, messages, each)

        async def pull() -> None:
            await _pull(link, len(messages))

        with ExitStack() as closing:
            made = iter([closing.enter_context(ledger_inside(path, writers, kms, examiner)) for path in folders])

            async def take_in() -> None:
                await _take_in(link, next(made))

            return await _beside(f"JetStream to durable, {each} a message", pull, take_in, _STREAMED, 1)


@asynccontextmanager
async def _stream(folder: Path) -> AsyncIterator[NatsLink]:
    ca = ThrowawayCa(folder)
    files = ca.issue("ledger.mesh.test", "ledger")
    async with (
        nats_broker(folder, ca) as broker,
        connect_nats(
            broker.url,
            LetIn(lambda: ca.client_context(files)),
            server_name="broker.mesh.test",
            name="ledger/one",
            inbox_prefix="_INBOX_ledger",
        ) as link,
    ):
        await ensure_stream(link, 1, max_bytes=_STREAM_BYTES, replicas=1, timeout=_SECONDS)
        yield link


async def _publish(link: NatsLink, issuer: bytes, messages: list[bytes], each: int) -> None:
    stream = await link.jetstream(_SECONDS)
    for number, data in enumerate(messages):
        headers = {"Nats-Msg-Id": message_id(issuer, number * each)}
        await stream.publish(issuer_subject(1, issuer), data, stream=stream_name(1), headers=headers)


async def _pull(link: NatsLink, messages: int) -> None:
    """What a reader costs that does nothing with what it reads."""
    stream = await link.jetstream(_SECONDS)
    config = ConsumerConfig(ack_policy=AckPolicy.ALL)
    subscription = await stream.pull_subscribe("", stream=stream_name(1), config=config)
    while messages > 0:
        found = await subscription.fetch(min(messages, 256), timeout=_SECONDS)
        await found[-1].ack()
        messages -= len(found)
    await subscription.unsubscribe()


async def _take_in(link: NatsLink, ledger: Inside) -> None:
    position = Position(ledger.store, ledger.rejections, lambda issuer: True)
    intake = Intake(link, 1, position, ledger.arrivals, ledger.committing, max_bytes=_STREAM_BYTES, replicas=1)
    running = asyncio.create_task(intake.run())
    try:
        async with asyncio.timeout(_SECONDS):
            await ledger.growth.beyond(_STREAMED)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    _require_size(ledger, 1 + _STREAMED)


def _require_size(ledger: Inside, size: int) -> None:
    if ledger.store.head.size != size:
        raise AssertionError(f"{ledger.store.head.size} entries are in the log, not {size}")


async def _latency(mesh: RunningMesh, folder: Path, seconds: float) -> Row:
    """The answers to receipts that come when they come: one that is answered late delays no other."""
    async with writing(mesh, folder) as (_, publisher, vault):
        act = commit(publisher, vault)
        with synced_write(folder) as write:
            (synced,) = await side_by_side([write], Limit(count=300, seconds=seconds))
        await act()
        answered = await _open_loop(act, seconds)
    return Row(f"acknowledged, {_PER_SECOND} a second", synced, answered)


async def _open_loop(act: Action, seconds: float) -> Samples:
    samples, began = Samples(), time.perf_counter()

    async def one(due: float) -> None:
        await act()
        samples.whole.append(time.perf_counter() - due)

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * _PER_SECOND)):
            due = began + number / _PER_SECOND
            await asyncio.sleep(due - time.perf_counter())
            tasks.create_task(one(due))
    return Samples(samples.whole, [], time.perf_counter() - began)
