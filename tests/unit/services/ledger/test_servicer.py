"""What the ledger's face does by itself: it refuses what is out of bounds, and waits for no disk."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any, cast

import pytest
from teemesh.ledger.v1 import ledger_pb2 as pb

from libs.rpc.calls import Context
from services.ledger.serving.servicer import BatchTooLarge, LedgerServicer, Reading
from services.ledger.serving.tail import MAX_BATCH
from services.ledger.serving.tiles import Tiles
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.segment_files import path_of
from services.ledger.vaults.closed import ClosedVaults

from .conftest import candidate
from .test_rewritten_history import served, signing, write

CALL = cast(Context, None)
"""Nothing here asks who calls."""
SIZE = 6
_LONG_SECONDS = 10.0

Call = Callable[[LedgerServicer], Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Stuck:
    """A served log whose first segment is a pipe: whoever opens it waits until somebody writes."""

    servicer: LedgerServicer
    pipe: Path

    def let_go(self) -> bool:
        """Let go whoever waits for the segment, who then finds that it cannot be read; False where nobody does."""
        try:
            os.close(os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
        return True


@pytest.fixture
async def stuck(tmp_path: Path) -> AsyncIterator[Stuck]:
    directory = write(tmp_path / "log", b"entry", SIZE)
    with served(directory) as log:
        async with signing(log):
            pass
        closed, tiles = ClosedVaults(log.store, log.growth), Tiles(log.store, log.checkpoints)
        servicer = LedgerServicer()
        servicer.follow(
            Reading(
                log.growth,
                log.checkpoints,
                log.proofs,
                log.store.reader,
                log.tail,
                closed,
                log.store.prunings,
                tiles,
            ),
            str,
        )
        pipe = path_of(directory, 0, ())
        pipe.unlink()
        os.mkfifo(pipe)
        yield Stuck(servicer, pipe)


@pytest.mark.parametrize(
    "call",
    [
        lambda servicer: servicer.GetEntry(pb.GetEntryRequest(index=0), CALL),
        lambda servicer: servicer.GetEntry(pb.GetEntryRequest(entry_id=candidate(1).entry_id), CALL),
        lambda servicer: servicer.GetInclusionProof(pb.GetInclusionProofRequest(entry_id=candidate(1).entry_id), CALL),
        lambda servicer: servicer.GetTlogProof(pb.GetTlogProofRequest(index=0), CALL),
        lambda servicer: servicer.GetCoseReceipt(pb.GetCoseReceiptRequest(index=0), CALL),
    ],
    ids=["entry", "entry by id", "proof by id", "tlog proof", "COSE receipt"],
)
async def test_who_waits_for_a_disk_keeps_nobody_else_waiting(stuck: Stuck, call: Call) -> None:
    asked = asyncio.ensure_future(call(stuck.servicer))
    rescue = Timer(_LONG_SECONDS, stuck.let_go)
    rescue.start()
    try:
        while not stuck.let_go():
            answer = await stuck.servicer.GetCheckpoint(pb.GetCheckpointRequest(), CALL)
            assert f"\n{SIZE}\n".encode() in answer.checkpoint
            await asyncio.sleep(0)
            assert not asked.done(), "nothing else went on until it had its answer"
    finally:
        rescue.cancel()
    with pytest.raises(LogDamaged):
        await asked


async def test_batch_beyond_the_most_is_refused(stuck: Stuck) -> None:
    def tail(most: int) -> AsyncIterator[pb.TailResponse]:
        return stuck.servicer.Tail(pb.TailRequest(from_index=SIZE, max_batch=most), CALL)

    with pytest.raises(BatchTooLarge):
        await anext(tail(MAX_BATCH + 1))
    assert (await anext(tail(MAX_BATCH))).log_size == SIZE
