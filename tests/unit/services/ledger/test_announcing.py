"""What the ledger says of its own work: each thing once, as it is on disk, and no entry for an entry's sake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from libs.events.records import Entry
from libs.transparency.leaf import Kind
from services.ledger.checkpoints.announcing import WITNESS_SECONDS, Announcing, SigningKeys
from services.ledger.checkpoints.auditing import SignedTree
from services.ledger.growth import Growth
from services.ledger.intake.own import OwnEntries
from services.ledger.intake.sequencer import Candidate
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.segments import FOOTER_SIZE, Geometry, file_name
from services.ledger.storage.store import LogStore
from tests.fakes.entry_schema import require_documented

from .conftest import SMALL, SOURCE, candidate, open_store, sequencer

KEYS = SigningKeys(b"\x01" * 32, b"\x02" * 32)
OTHERS = SigningKeys(b"\x03" * 32, b"\x02" * 32)
ISSUER = b"\x33" * 32


class Log:
    """A log that has what the ledger says at once, and a publisher for it."""

    issuer = ISSUER

    def __init__(self, store: LogStore) -> None:
        self.store, self.growth = store, Growth(store.head.size, store.head.root())
        self._sequencer = sequencer(store)
        self.said: list[tuple[Kind, dict[str, Any]]] = []
        self.taken = asyncio.Event()

    async def enqueue(self, kind: Kind, body: dict[str, Any], *, vault: None, essential: bool) -> None:
        require_documented(kind, body)
        self.said.append((kind, body))
        number = self.store.index.progress(ISSUER)
        entry = Entry(kind, ISSUER, 1 if number is None else number.highest + 1, bytes(32), None, body)
        content = bytes(32) + entry.canonical()
        self.append(Candidate(kind, ISSUER, entry.issuer_seq, sha256(content).digest(), 0, bytes(16), content))
        self.taken.set()

    def append(self, *entries: Candidate) -> None:
        at = self.store.head.source_high + 1
        commit = self._sequencer.append(list(entries), SOURCE, at, at)[-1]
        self.growth.reach(commit.size, commit.root)

    def bodies(self, kind: Kind) -> list[dict[str, Any]]:
        return [body for each, body in self.said if each is kind]


class Witnessed:
    """Witnesses that cosign what the test says."""

    def __init__(self) -> None:
        self.growth = Growth(0, b"")

    async def witnessed_beyond(self, size: int) -> SignedTree:
        await self.growth.beyond(size)
        return SignedTree(self.growth.size, self.growth.root, b"note of %d" % self.growth.size)


@asynccontextmanager
async def announcing(
    folder: Path, geometry: Geometry = SMALL, pause: Callable[[float], Any] = asyncio.sleep
) -> AsyncIterator[tuple[Log, Announcing, Witnessed]]:
    # One thread: what was begun before is done before, which `settled` counts on.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    with open_store(folder, geometry) as store:
        log, trees = Log(store), Witnessed()
        own = OwnEntries(log)  # type: ignore[arg-type]
        yield log, Announcing(store, log.growth, trees, own, pause), trees


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[None]:
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        yield
        task.cancel()


async def settled(log: Log) -> None:
    """Wait until nothing more is said."""
    size = -1
    while size != log.store.head.size:
        size = log.store.head.size
        for _ in range(3):
            await asyncio.to_thread(lambda: None)


async def test_keys_are_said_at_the_beginning_and_when_they_change(empty_log: Path) -> None:
    for epoch, keys in ((1, KEYS), (2, KEYS), (3, OTHERS), (4, OTHERS), (5, KEYS)):
        async with announcing(empty_log) as (log, announces, _):
            await announces.begin(epoch, keys)
        changed = epoch in (1, 3, 5)
        named = {"ack_key": keys.acknowledgement.hex(), "checkpoint_key": keys.checkpoint.hex()}
        assert log.bodies(Kind.LOGKEY) == ([{"epoch": epoch, **named}] if changed else [])


async def test_each_sealed_segment_is_said_once_as_it_is_on_disk(empty_log: Path) -> None:
    async with announcing(empty_log) as (log, announces, _), running(announces.keep_seals()):
        for number in range(1, 12):
            log.append(candidate(number))
            await settled(log)
        said = log.bodies(Kind.SEAL)
    assert [(body["number"], body["first"], body["count"]) for body in said][:2] == [(0, 0, 4), (1, 4, 4)]
    assert len({body["first"] for body in said}) == len(said)
    for body in said:
        footer = (empty_log / SEGMENTS / file_name(body["first"])).read_bytes()[-FOOTER_SIZE:]
        assert body["footer_sha256"] == sha256(footer).hexdigest()
    with open_store(empty_log) as store:
        for body in said:
            assert body["root"] == store.index.tree.root(body["first"] + body["count"]).hex()
            assert body["chain"] == store.reader.chain_at(body["first"] + body["count"]).hex()


async def test_segment_that_a_stop_has_sealed_is_said_by_the_next_start_alone(empty_log: Path) -> None:
    stops = replace(SMALL, segment_leaves=100, sealed_at_stop=1)
    found = []
    async with announcing(empty_log, stops) as (log, _, _):
        log.append(candidate(1), candidate(2))
    for _ in range(2):
        few = replace(stops, sealed_at_stop=100)
        async with announcing(empty_log, few) as (log, announces, _), running(announces.keep_seals()):
            await settled(log)
        found.append([(body["first"], body["count"]) for body in log.bodies(Kind.SEAL)])
    assert found == [[(0, 2)], []]


async def test_cosignatures_are_said_by_the_hour_and_not_for_the_entry_that_said_them(empty_log: Path) -> None:
    pauses: list[float] = []
    go_on = asyncio.Event()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await go_on.wait()
        go_on.clear()

    async with announcing(empty_log, pause=pause) as (log, announces, trees), running(announces.keep_witnessed()):
        log.append(candidate(1))
        trees.growth.reach(1, b"")
        await log.taken.wait()
        assert log.bodies(Kind.WITNESS) == [{"checkpoint": "note of 1"}]
        go_on.set()
        trees.growth.reach(2, b"")  # The entry itself is witnessed.
        await settled(log)
        assert len(log.bodies(Kind.WITNESS)) == 1
        trees.growth.reach(3, b"")
        await settled(log)
        assert log.bodies(Kind.WITNESS)[1:] == [{"checkpoint": "note of 3"}]
        trees.growth.reach(9, b"")
        await settled(log)
        assert len(log.bodies(Kind.WITNESS)) == 2
    assert pauses == [WITNESS_SECONDS] * 2
