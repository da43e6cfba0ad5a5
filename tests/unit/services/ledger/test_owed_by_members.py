"""What a member found of others' faults as the writer is in the log, whether or not it ever writes again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import closing

import pytest
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs import jcs
from libs.events.consume import StreamGap
from libs.events.records import SALT_SIZE
from libs.transparency import leaf
from libs.transparency.leaf import Kind
from services.ledger.intake.faults import Saying, lost, quarantined
from services.ledger.intake.owed import Owed
from services.ledger.intake.rejections import Reason, Refusal
from tests.fakes.joined_mesh import JoinedMesh

from .live import Router
from .live_group import PATIENCE_SECONDS, LiveGroup
from .test_process import Client, commit, parsed
from .vault_attack import rows_in

FAULTS = (Kind.GAP, Kind.CONFLICT, Kind.QUARANTINE)
MANY = 200
"""More than one batch of a publisher's holds."""


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveGroup]:
    async with LiveGroup(mesh).running() as running:
        assert isinstance(running, LiveGroup)
        yield running


def evidence() -> list[Saying]:
    numbers = range(1, MANY + 1)
    refused = (quarantined(Refusal(1, Reason.KIND_NOT_ALLOWED, "", b"", b"\x0a" * 32, number)) for number in numbers)
    return [lost(b"\x01" * 16, StreamGap(4, 9)), *refused]


async def until_said(router: Router, count: int) -> None:
    """Follow the log until it has so many entries about faults."""
    stub = ledger_pb2_grpc.LedgerServiceStub(await router.ledger.channel(PATIENCE_SECONDS))
    request = ledger_pb2.TailRequest(from_index=0, follow=True, kinds=FAULTS)
    async for response in stub.Tail(request, timeout=PATIENCE_SECONDS):
        count -= len(response.entries)
        if count <= 0:
            return


async def test_a_member_that_never_writes_again_says_what_it_owes(live: LiveGroup) -> None:
    """A writer is killed when it owes the log evidence. It comes back beside another writer, whom nobody deposes."""
    async with live.router() as router:
        client = Client(router)
        await live.start_all()
        vault = await client.open_vault()
        await commit(router, vault, 1)
        first = await live.writer(live.member)
        await live.kill_member(first)
        with closing(Owed(live.places[first].data_dir)) as owed:
            owed.add(evidence())
        second = await live.writer(live.member)
        standing = await live.standing(live.member, second)
        await live.processes[first].start()
        await until_said(router, MANY + 1)
        await commit(router, vault, 2)
        assert await live.writer(live.member) == second
        after = await live.standing(live.member, second)
        assert standing is not None
        assert after is not None
        assert after.epoch == standing.epoch
        batches = await client.tail(ledger_pb2.TailRequest(from_index=0, max_batch=200))
    entries = [public for _, public in parsed([entry for batch in batches for entry in batch.entries])]
    said = [entry for entry in entries if entry.kind in FAULTS]
    assert len(said) == MANY + 1
    [issuer] = {entry.issuer for entry in said}
    own = [entry.issuer_seq for entry in entries if entry.issuer == issuer]
    assert sorted(own) == list(range(1, len(own) + 1))


async def test_a_member_that_is_cut_off_owes_on_and_holds_up_nobody(live: LiveGroup) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.start_all()
        vault = await client.open_vault()
        writer = await live.writer(live.member)
        owing = next(name for name in live.names if name != writer)
        await live.kill_member(owing)
        with closing(Owed(live.places[owing].data_dir)) as owed:
            owed.add(evidence()[:1])
        live.isolate(owing)
        live.to_broker[owing].cut()
        await live.processes[owing].start(ready=False)
        for number in range(3):
            await commit(router, vault, number)
        live.mend()
        live.to_broker[owing].mend()
        await until_said(router, 1)
    await live.stop()
    rows = [row for _, row in rows_in(live.places[writer].data_dir)]
    gaps = [row.body[SALT_SIZE:] for row in rows if leaf.parse(row.leaf_data).kind is Kind.GAP]
    assert [jcs.loads_object(gap)["body"] for gap in gaps] == [dict(evidence()[0].body)]
