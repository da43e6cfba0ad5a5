"""Whoever is left with one member's folder has the log: it proves itself, under keys that the log says are members'."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.audit.log.findings import Status
from libs.audit.log.reading import Question, Reading, read_log
from libs.rpc.errors import reason_of
from libs.transparency import checkpoint
from services.cli.ledger.export import LogNotSound, export
from services.cli.ledger.files import LogFolder
from services.ledger.storage import records_log
from services.ledger.storage.recovery import CHECKPOINT, CHECKPOINTS_LOG
from tests.fakes.joined_mesh import JoinedMesh

from .live import Router
from .live_group import PATIENCE_SECONDS, LiveGroup
from .test_group import standing_in
from .test_process import Client, commit, index_of

_LOOK_SECONDS = 0.05


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveGroup]:
    async with LiveGroup(mesh).running() as running:
        assert isinstance(running, LiveGroup)
        yield running


async def shown(live: LiveGroup, router: Router, name: str) -> bytes:
    """The note of what a member has signed. Raises `AioRpcError`."""
    channel = await router.member.peer("ledger", live.targets[name]).channel(PATIENCE_SECONDS)
    stub = ledger_pb2_grpc.LedgerServiceStub(channel)
    return bytes((await stub.GetCheckpoint(ledger_pb2.GetCheckpointRequest(), timeout=5)).checkpoint)


async def until_signed(live: LiveGroup, router: Router, name: str, size: int) -> None:
    """Wait until a member shows a tree of so many leaves under its own signature."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                if checkpoint.parse(await shown(live, router, name)).size >= size:
                    return
            except grpc.aio.AioRpcError as error:
                if reason_of(error) != "NO_CHECKPOINT":
                    raise
            await asyncio.sleep(_LOOK_SECONDS)


def read(folder: Path) -> Reading:
    return read_log(LogFolder(folder), Question())


async def test_every_copy_proves_itself_whoever_wrote_and_under_whatever_keys(live: LiveGroup) -> None:
    async with live.router() as router:
        client = Client(router)
        await live.start_all()
        vault = await client.open_vault()
        first = index_of(await commit(router, vault, 1))
        writer = await live.writer(live.member)
        left = [name for name in live.names if name != writer]
        for name in left:
            await until_signed(live, router, name, first + 1)
        await _sign_nothing_unknown(live, router, writer, left[0])
        await live.processes[left[0]].start()
        await until_signed(live, router, left[0], first + 1)  # Under keys that it was born with now.
        await live.kill_member(writer)
        last = index_of(await commit(router, vault, 2))
        for name in left:
            await until_signed(live, router, name, last + 1)
        for name in left:
            await live.kill_member(name)
        for name in left:
            folder = live.places[name].data_dir
            reading = read(folder)
            assert reading.findings.wrong == [], name
            assert reading.newest is not None
            assert reading.newest.size > last
            assert export(LogFolder(folder), folder.with_name("bundle"), 0, None).size == reading.size

        folder = live.places[left[0]].data_dir
        forged = await asyncio.to_thread(shutil.copytree, folder, folder.with_name("forged"))
        newest = checkpoint.parse((forged / CHECKPOINT).read_bytes())
        note = checkpoint.sign(newest, Ed25519PrivateKey.generate())
        with (forged / CHECKPOINTS_LOG).open("ab") as notes:
            notes.write(records_log.encode(records_log.CHECKPOINTS, note))
        assert read(forged).findings.worst is Status.UNPROVEN
        with pytest.raises(LogNotSound):
            export(LogFolder(forged), folder.with_name("of-forged"), 0, None)


async def _sign_nothing_unknown(live: LiveGroup, router: Router, writer: str, name: str) -> None:
    """A member whose new keys cannot come into the log signs nothing with them, so its copy stays what it was."""
    await live.kill_member(name)
    live.to_broker[name].cut()
    await live.processes[name].start()
    async with standing_in(live, writer, name) as stand:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stand.show(await shown(live, router, writer))
    assert reason_of(refused.value) == "TREE_NOT_TAKEN"
    with pytest.raises(grpc.aio.AioRpcError) as unsigned:
        await shown(live, router, name)
    assert reason_of(unsigned.value) == "NO_CHECKPOINT"
    await live.processes[name].kill(signal.SIGTERM)
    assert read(live.places[name].data_dir).findings.wrong == []
    live.to_broker[name].mend()
