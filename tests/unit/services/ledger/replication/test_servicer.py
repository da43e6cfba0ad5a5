"""What a member says of itself to whoever looks for the writer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
from teemesh.ledger.v1 import replication_pb2 as pb
from teemesh.ledger.v1 import replication_pb2_grpc as pb_grpc

from services.ledger.replication.servicer import ReplicationServicer

from .near import group_at


@asynccontextmanager
async def served(servicer: ReplicationServicer) -> AsyncIterator[pb_grpc.LedgerReplicationServiceStub]:
    """What anybody may ask, who asks being somebody else's to check."""
    server = grpc.aio.server()
    pb_grpc.add_LedgerReplicationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield pb_grpc.LedgerReplicationServiceStub(channel)
    finally:
        await server.stop(0)


async def test_a_writer_whom_another_may_have_followed_does_not_call_itself_one(tmp_path: Path) -> None:
    with group_at(tmp_path) as group:
        elected, member = await group.campaign("one"), group.members["one"]
        assert elected is not None
        leading = group.leading("one", elected)
        servicer = ReplicationServicer(group.settings, "one", bytes(32), member.follower)
        async with asyncio.timeout(20), served(servicer) as stub, asyncio.TaskGroup() as tasks:
            running = tasks.create_task(leading.run())
            await leading.until_begun()
            roles = [(await stub.GetStanding(pb.GetStandingRequest(), timeout=10)).role]
            servicer.writes(leading)
            roles.append((await stub.GetStanding(pb.GetStandingRequest(), timeout=10)).role)
            group.away = {"two", "three"}
            member.wait()
            roles.append((await stub.GetStanding(pb.GetStandingRequest(), timeout=10)).role)
            running.cancel()
    assert roles == [pb.MEMBER_ROLE_FOLLOWER, pb.MEMBER_ROLE_WRITER, pb.MEMBER_ROLE_FOLLOWER]
