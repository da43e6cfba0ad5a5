"""Responsible for what a tail of the whole log costs, its two ends apart: the ledger's here, the reader's in a process.

The ledger's own servicer answers, by gRPC without TLS. What each end costs is its processor's seconds: one core is the
most that either of them can use.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.events.whole_frames import entries_of
from libs.transparency.chain import chain_next, chain_start
from libs.transparency.merkle import leaf_hash
from services.ledger.checkpoints.auditing import AuditorProcess, Checkpoints
from services.ledger.checkpoints.proofs import Proofs
from services.ledger.growth import Growth
from services.ledger.keys import ReleasedKey
from services.ledger.serving.servicer import LedgerServicer, Reading
from services.ledger.serving.tail import MAX_BATCH, Tail
from services.ledger.serving.tiles import Tiles
from services.ledger.storage.store import LogStore
from services.ledger.vaults.closed import ClosedVaults
from tests.bench.report import Row
from tests.bench.samples import Action, in_pairs, percentile
from tests.mesh.running import ROOT
from tests.unit.services.ledger.writers import Keys

_PAIRS = 10
_KEY = ReleasedKey(1, b"\x05" * 32)
_HOW = {
    "entries": "by entries, none looked at",
    "frames": "by whole frames, none looked at",
    "checked entries": "by entries, the chain checked",
    "checked frames": "by whole frames, taken apart and the chain checked",
}


class _Unused(AuditorProcess):
    """Nothing is signed here."""

    def __init__(self) -> None:
        return None


@dataclass(slots=True)
class _Spent:
    """Seconds of a processor, for each tail."""

    ledger: list[float] = field(default_factory=list)
    reader: list[float] = field(default_factory=list)


async def measure(store: LogStore, hashes: Action) -> tuple[list[Row], list[str]]:
    """Return a row for each way to read a log, beside hashing its bytes, and what it comes to."""
    rows, notes, size = [], [], store.head.size
    async with _serving(store) as port, _reading(port, store.description.origin) as ask:
        for how, said in _HOW.items():
            spent = _Spent()
            pairs = await in_pairs(hashes, _tailing(ask, how, spent), pairs=_PAIRS, in_a_row=1)
            rows.append(Row(f"tail, {said}", pairs.base, pairs.ours))
            rates = (size / seconds for seconds in (pairs.ours.p50, _middle(spent.ledger), _middle(spent.reader)))
            together, ledger, reader = (f"{rate:,.0f}" for rate in rates)
            notes.append(f"tail {said}: {together} entries/s; a core of the ledger {ledger}, of the reader {reader}")
    return rows, [*notes, "goal of a tail: at least 300,000 entries/s"]


def _middle(seconds: list[float]) -> float:
    return percentile(seconds, 50)


def _tailing(ask: Callable[[str], Awaitable[float]], how: str, spent: _Spent) -> Action:
    async def tail() -> None:
        began = time.process_time()
        spent.reader.append(await ask(how))
        spent.ledger.append(time.process_time() - began)

    return tail


@asynccontextmanager
async def _serving(store: LogStore) -> AsyncIterator[int]:
    growth = Growth(store.head.size, store.head.root())
    checkpoints = Checkpoints(_Unused(), growth, _nothing, 1.0)
    tail = Tail(store, growth, checkpoints, Keys(), _KEY)
    proofs, closed = Proofs(store, growth, checkpoints), ClosedVaults(store, growth)
    servicer = LedgerServicer()
    servicer.follow(
        Reading(growth, checkpoints, proofs, store.reader, tail, closed, store.prunings, Tiles(store, checkpoints)), str
    )
    server = grpc.aio.server()
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def _nothing() -> None:
    return None


@asynccontextmanager
async def _reading(port: int, origin: str) -> AsyncIterator[Callable[[str], Awaitable[float]]]:
    """Run a reader; asked to read, it says how much of its processor that took."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.ledger_tail", str(port), origin),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    asked, told = process.stdin, process.stdout
    if asked is None or told is None:
        raise RuntimeError("the reader has no pipes")

    async def ask(how: str) -> float:
        asked.write(how.encode() + b"\n")
        return float(json.loads(await told.readline())["seconds"])

    try:
        yield ask
    finally:
        asked.close()
        await process.wait()


async def _read(stub: ledger_pb2_grpc.LedgerServiceStub, how: str, origin: str) -> None:
    request = ledger_pb2.TailRequest(from_index=0, max_batch=MAX_BATCH, whole_frames=how.endswith("frames"))
    head, at = chain_start(origin), 0
    async for message in stub.Tail(request, timeout=300):
        if not how.startswith("checked"):
            continue
        for entry in entries_of(message, at):
            head = chain_next(head, at, leaf_hash(entry.leaf_data))
            at += 1
        if head != message.chain_after:
            raise RuntimeError("the chain does not lead to what the ledger states")


async def _main(port: str, origin: str) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        while how := (await asyncio.to_thread(sys.stdin.readline)).strip():
            began = time.process_time()
            await _read(stub, how, origin)
            sys.stdout.write(json.dumps({"seconds": time.process_time() - began}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
