"""What a watched channel knows of its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import Code, MeshError
from libs.rpc.policies import MethodRule
from libs.rpc.watched import WatchedChannel
from tests.fakes.small_mesh import SmallMesh

ROUTERS = MethodRule(roles=frozenset({"router"}), long_lived=True)


async def statement(channel: grpc.aio.Channel) -> None:
    await kms_pb2_grpc.KmsServiceStub(channel).GetStatement(kms_pb2.GetStatementRequest(), timeout=5)


async def test_calls_run_until_they_are_over_however_they_end() -> None:
    async def tail() -> AsyncIterator[ledger_pb2.TailResponse]:
        yield ledger_pb2.TailResponse()
        await asyncio.Event().wait()

    mesh = SmallMesh()
    async with mesh.serve(tail=tail, tail_rule=ROUTERS) as server, mesh.channel(server.port) as bare:
        channel = WatchedChannel(bare, lambda: None)
        call = ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest())
        await call.read()
        await statement(channel)
        assert channel.running == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call.read()
        assert channel.running == 0


async def test_only_a_call_that_the_server_did_not_know_the_caller_of_is_told_of() -> None:
    told: list[None] = []
    mesh = SmallMesh()
    async with mesh.serve() as server, mesh.channel(server.port) as bare, mesh.channel(server.port, "node") as other:
        channel = WatchedChannel(bare, lambda: told.append(None))
        await statement(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await statement(WatchedChannel(other, lambda: told.append(None)))  # Its role is refused, not its person.
        assert not told
        mesh.gate.end()
        with pytest.raises(grpc.aio.AioRpcError):
            await statement(channel)
        assert told == [None]


class Cut(MeshError):
    """The server is cut off from what it needs."""

    code = Code.UNAVAILABLE
    reason = "CUT"


async def test_a_server_that_says_that_it_cannot_serve_is_away_until_it_serves() -> None:
    cut = True

    async def answer() -> kms_pb2.GetStatementResponse:
        if cut:
            raise Cut("not now")
        return kms_pb2.GetStatementResponse()

    mesh = SmallMesh()
    async with mesh.serve(statement=answer) as server, mesh.channel(server.port) as bare:
        channel = WatchedChannel(bare, lambda: None)
        with pytest.raises(grpc.aio.AioRpcError):
            await statement(channel)
        was_away = channel.is_away
        cut = False
        await statement(channel)
        assert (was_away, channel.is_away) == (True, False)


async def test_a_server_is_away_from_a_missed_deadline_to_the_next_answer() -> None:
    answering = asyncio.Event()

    async def answer() -> kms_pb2.GetStatementResponse:
        await answering.wait()
        return kms_pb2.GetStatementResponse()

    mesh = SmallMesh()
    async with mesh.serve(statement=answer) as server, mesh.channel(server.port) as bare:
        channel = WatchedChannel(bare, lambda: None)
        stub = kms_pb2_grpc.KmsServiceStub(channel)

        def is_away() -> bool:
            return channel.is_away

        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetStatement(kms_pb2.GetStatementRequest(), timeout=0.5)
        assert is_away()
        given_up = stub.GetStatement(kms_pb2.GetStatementRequest(), timeout=20)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert is_away(), "the caller gave up, which is no answer"
        answering.set()
        await statement(channel)
        assert not is_away()
        channel.is_away = True
        mesh.gate.end()
        with pytest.raises(grpc.aio.AioRpcError):
            await statement(channel)
        assert not is_away(), "a refusal is an answer"


async def test_a_stub_made_again_is_made_of_what_there_is() -> None:
    mesh = SmallMesh()
    async with mesh.serve() as server, mesh.channel(server.port) as bare:
        channel = WatchedChannel(bare, lambda: None)
        first, second = (kms_pb2_grpc.KmsServiceStub(channel) for _ in range(2))
        assert first.GetStatement is second.GetStatement
        assert len({first.GetStatement, first.GetPolicy, second.GetPolicy}) == 2
