"""A log on three members, each a process: one writes, a majority decides, and nothing acknowledged is ever lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from teemesh.ledger.v1 import ledger_pb2

from tests.fakes.joined_mesh import JoinedMesh

from .live_group import LiveGroup
from .test_process import Client, commit, index_of, parsed


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveGroup]:
    async with LiveGroup(mesh).running() as running:
        assert isinstance(running, LiveGroup)
        yield running


async def test_a_member_takes_over_when_the_writer_is_killed_and_nothing_acknowledged_is_lost(live: LiveGroup) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.start_all()
        vault = await client.open_vault()
        first = [await commit(router, vault, number) for number in range(5)]
        writer = await live.writer(live.member)
        running = [asyncio.create_task(commit(router, vault, 100 + number)) for number in range(100)]
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        await live.kill_member(writer)
        committed = [*first, *await asyncio.gather(*running)]
        assert await client.open_vault() == vault
        batches = await client.tail(ledger_pb2.TailRequest(from_index=0, max_batch=50))
        entries = [entry for batch in batches for entry in batch.entries]
        by_index = {entry.index: entry for entry, _ in parsed(entries)}
        assert sorted(by_index) == list(range(len(entries)))
        for each in committed:
            assert by_index[index_of(each)].leaf_data == each.acknowledgement.leaf_data
