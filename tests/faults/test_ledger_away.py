"""While the ledger is away no answer is whole; when it is back, the log says what the client really got."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from libs import jcs
from libs.aci import receipt as receipts
from libs.aci.receipt_events import Aborted
from tests.faults.load import Client, Record, Reply
from tests.faults.log import LogReader, WholeLog
from tests.faults.patience import until
from tests.faults.recovery import everyone_serves
from tests.faults.targets import TARGETS, kill
from tests.mesh.running import RunningMesh

pytestmark = pytest.mark.mesh

DEADLINE_SECONDS = 30
"""Far below the router's own 120: the ledger's share of a request is 5."""
_TARGETS = {target.name: target for target in TARGETS}


@asynccontextmanager
async def stopped(mesh: RunningMesh) -> AsyncIterator[None]:
    """The ledger's process group does nothing."""
    group = mesh.mesh["services"]["ledger"]["pid"]
    os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(group, signal.SIGCONT)
    await _until_whole(mesh)


@asynccontextmanager
async def kept_down(mesh: RunningMesh) -> AsyncIterator[None]:
    """The ledger is dead, and another process holds its log, so that it cannot start."""
    lock = os.open(mesh.state / "state" / "ledger" / "log" / "LOCK", os.O_RDWR)
    try:
        kill(mesh, _TARGETS["ledger"])
        await until(lambda: _is_taken(lock), poll_seconds=0.01)
        yield
    finally:
        os.close(lock)
    await _until_whole(mesh)


async def _is_taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _until_whole(mesh: RunningMesh) -> None:
    async with asyncio.timeout(60):
        await until(lambda: everyone_serves(mesh))


@pytest.fixture(autouse=True)
async def served(client: Client) -> None:
    """Everyone has found each other, and the tenant's vault is open at the router."""
    record = Record()
    async with asyncio.timeout(60):
        while await client.ask(0, record, stream=False) is None:
            pass


@dataclass(frozen=True, slots=True)
class Denied:
    """What came instead of an answer."""

    buffered: Reply
    streamed: Reply


async def ask_in_vain(client: Client) -> Denied:
    """Ask both ways at once, and check what any client can see of the refusals."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        buffered, streamed = await asyncio.gather(
            client.reply(client.body(1, stream=False)), client.reply(client.body(2, stream=True))
        )
    assert (buffered.status, buffered.error_type) == (503, "ledger_unavailable")
    assert streamed.trouble is None
    assert streamed.error_type == "ledger_unavailable"
    assert not buffered.is_answer
    assert not streamed.is_answer, "a finish reason went out"
    return Denied(buffered, streamed)


async def _log_with(reader: LogReader, *replies: Reply) -> WholeLog:
    """Read the log once it has the receipts of all these."""
    found = WholeLog(())

    async def is_logged() -> bool:
        nonlocal found
        found = await reader.read()
        logged, amendments = found.receipts(), found.amendments()
        ours = [logged[reply.receipt_id] for reply in replies if reply.receipt_id in logged]
        return len(ours) == len(replies) and all(
            one.entry_id.hex() in amendments or _aborted(one.entry.body) for one in ours
        )

    async with asyncio.timeout(60):
        await until(is_logged, poll_seconds=0.5)
    return found


def _aborted(body: object) -> list[str]:
    return [event.reason for event in receipts.parse(jcs.dumps(body)).events if isinstance(event, Aborted)]


def verify_amended(log: WholeLog, reply: Reply) -> None:
    """The receipt is there, and an amendment of it says which bytes went out."""
    logged = log.receipts()[str(reply.receipt_id)]
    amendment = log.amendments()[logged.entry_id.hex()].entry.body
    assert (amendment["effect"], amendment["emitted_hash"]) == ("not_released", f"sha256:{reply.sha256}")
    assert receipts.parse(jcs.dumps(dict(logged.entry.body))).returned.body_hash != f"sha256:{reply.sha256}"


async def test_with_a_stopped_ledger_no_request_completes_and_the_amendment_says_so(
    mesh: RunningMesh, client: Client, reader: LogReader
) -> None:
    async with stopped(mesh):
        denied = await ask_in_vain(client)
    log = await _log_with(reader, denied.buffered, denied.streamed)
    verify_amended(log, denied.buffered)
    verify_amended(log, denied.streamed)
    log.verify_sequences()


async def test_with_a_ledger_that_cannot_start_no_request_completes_and_the_amendment_says_so(
    mesh: RunningMesh, client: Client, reader: LogReader
) -> None:
    async with kept_down(mesh):
        denied = await ask_in_vain(client)
    log = await _log_with(reader, denied.buffered, denied.streamed)
    verify_amended(log, denied.buffered)
    verify_amended(log, denied.streamed)


async def test_a_router_that_never_reached_the_ledger_logs_what_it_sent_once_it_does(
    mesh: RunningMesh, client: Client, reader: LogReader
) -> None:
    async with kept_down(mesh):
        killed = kill(mesh, _TARGETS["router"])
        async with asyncio.timeout(60):
            await until(lambda: _serves_its_model(mesh, client, killed))
        denied = await ask_in_vain(client)
    # Nothing was sealed yet when the answer was given up, so the receipt itself says what went out.
    log = await _log_with(reader, denied.buffered, denied.streamed)
    for reply in (denied.buffered, denied.streamed):
        body = log.receipts()[str(reply.receipt_id)].entry.body
        assert _aborted(body) == ["ledger_unavailable"]
        assert receipts.parse(jcs.dumps(dict(body))).returned.body_hash == f"sha256:{reply.sha256}"


async def _serves_its_model(mesh: RunningMesh, client: Client, killed: int) -> bool:
    if _TARGETS["router"].pid(mesh) in (None, killed):
        return False
    reply = await client.get(f"/v1/aci/sessions?model={mesh.mesh['model']}")
    return reply.status == 200 and bool(reply.json["sessions"])
