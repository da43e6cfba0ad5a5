"""What a member reaches is what answers it: that a connection stands says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc

from libs.events.connect import NatsLink, connect_nats
from libs.rpc.calls import Context
from services.ledger.checkpoints.witnesses import Witness, open_witnesses
from services.ledger.checkpoints.witnessing import Asked
from services.ledger.replication.exchange import Reached
from services.ledger.replication.reach import Reach
from tests.fakes.let_in import LetIn
from tests.fakes.nats_broker import NatsBroker, nats_broker
from tests.fakes.throwaway_ca import ThrowawayCa
from tests.unit.services.ledger.test_witnessing import ORIGIN, absent, mesh_of


class Kms(kms_pb2_grpc.KmsServiceServicer):
    """Makes its statements while it answers."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.answers.set()

    async def GetStatement(  # noqa: N802
        self, request: kms_pb2.GetStatementRequest, context: Context
    ) -> kms_pb2.GetStatementResponse:
        await self.answers.wait()
        return kms_pb2.GetStatementResponse()


class Around:
    """A KMS, a broker and witnesses around one member."""

    def __init__(self, kms: Kms, channel: grpc.aio.Channel, broker: NatsBroker, link: NatsLink) -> None:
        self.kms = kms
        self.broker = broker
        self._channel = channel
        self._link = link

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        return self._channel

    async def look(self, *witnesses: Witness, quorum: int = 0) -> Reached:
        return await Reach(Asked(witnesses, quorum, 1.0), ORIGIN, self, self._link, 1).look()


@asynccontextmanager
async def serving(kms: Kms) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    kms_pb2_grpc.add_KmsServiceServicer_to_server(kms, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Around]:
    ca, kms = ThrowawayCa(tmp_path), Kms()  # type: ignore[abstract]  # The other methods stay unimplemented.
    files = ca.issue("ledger.mesh.test", "ledger")
    async with (
        serving(kms) as channel,
        nats_broker(tmp_path, ca) as broker,
        connect_nats(
            broker.url,
            LetIn(lambda: ca.client_context(files)),
            server_name="broker.mesh.test",
            name="ledger/one",
            inbox_prefix="_INBOX_ledger",
        ) as link,
    ):
        await link.client(20)
        yield Around(kms, channel, broker, link)


async def test_what_answers_is_reached(around: Around) -> None:
    """Also a broker that has no stream yet, and a log that nobody witnesses."""
    assert await around.look() == Reached(witnesses=True, kms=True, broker=True)


async def test_what_stands_and_answers_nothing_is_not_reached(around: Around) -> None:
    around.kms.answers.clear()
    with around.broker.paused():
        assert await around.look() == Reached(witnesses=True, kms=False, broker=False)


async def test_a_broker_that_is_gone_is_not_reached(around: Around) -> None:
    await around.broker.kill()
    assert await around.look() == Reached(witnesses=True, kms=True, broker=False)


async def test_witnesses_are_reached_where_a_writer_would_wait_for_no_more(around: Around, tmp_path: Path) -> None:
    """As many as any quorum has one among."""
    async with mesh_of(tmp_path, 2) as (served, there), open_witnesses([absent(served[0])]) as away:
        assert (await around.look(*there, quorum=1)).witnesses
        assert (await around.look(*there, *away, quorum=2)).witnesses
        assert not (await around.look(*there, *away, quorum=1)).witnesses
