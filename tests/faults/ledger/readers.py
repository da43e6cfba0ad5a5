"""20: readers that come and go a thousand times, and a hundred that do not read what they asked for."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import grpc.aio
from teemesh.ledger.v1 import ledger_pb2

from libs.events.whole_frames import entries_of
from libs.transparency.chain import chain_next, chain_start
from libs.transparency.merkle import leaf_hash
from tests.faults.ledger.ground import PATIENCE_SECONDS, Ground
from tests.faults.ledger.outcome import Batch, Outcome
from tests.faults.ledger_failover import ORIGIN

_MOST_GROWTH = 50 * 1024 * 1024
_SLOW = 100
_FEW = 10


async def readers(ground: Ground, batch: Batch) -> Outcome:
    """Read with one connection after the other, each broken off, while many others stand still."""
    outcome = Outcome()
    stub = await ground.stub()
    slow = [stub.Tail(_of_all(number), timeout=600) for number in range(_FEW)]
    for call in slow:
        await call.read()
    before = _resident(ground.live.process.pid)
    slow += [stub.Tail(_of_all(number), timeout=600) for number in range(_FEW, _SLOW)]
    token, head, reached = b"", chain_start(ORIGIN), 0
    async with ground.busy():
        for number in batch.rounds:
            chance = batch.chance(number)
            request = ledger_pb2.TailRequest(max_batch=chance.randint(1, 8), whole_frames=chance.random() < 0.5)
            if token:
                request.token = token
            else:
                request.from_index = 0
            call = stub.Tail(request, timeout=PATIENCE_SECONDS)
            for _ in range(chance.randint(1, 3)):
                response = await call.read()
                if not isinstance(response, ledger_pb2.TailResponse):
                    break
                outcome.counts["messages of whole frames"] += bool(response.frames)
                for entry in entries_of(response, reached):
                    outcome.require(entry.index == reached, f"leaf {entry.index} comes where {reached} was to")
                    head = chain_next(head, entry.index, leaf_hash(entry.leaf_data))
                    reached += 1
                outcome.require(response.chain_after == head, f"another chain at {reached}")
                token = response.token
            call.cancel()
            outcome.counts["readers broken off"] += 1
    grown = _resident(ground.live.process.pid) - before
    outcome.require(grown < _MOST_GROWTH, f"the ledger has grown by {grown} bytes")
    outcome.counts["readers that stood still"] += len(slow)
    for call in slow:
        call.cancel()
        with suppress(grpc.aio.AioRpcError):
            await call.code()
    return outcome


def _of_all(number: int) -> ledger_pb2.TailRequest:
    """Every other one asks for whole frames."""
    return ledger_pb2.TailRequest(from_index=0, follow=True, whole_frames=number % 2 == 0)


def _resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))
