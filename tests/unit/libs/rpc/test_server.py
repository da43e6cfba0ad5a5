from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.rpc.errors import reason_of
from libs.rpc.policies import MethodRule, MethodTableWrong, ServiceBinding, merge_methods
from libs.rpc.server import CannotListen, PortTaken, serving
from tests.fakes.small_mesh import KMS, SmallMesh

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


def _health(channel: grpc.aio.Channel) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]


async def _ask(channel: grpc.aio.Channel, service: str) -> int:
    response = await _health(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return int(response.status)


async def test_health_is_not_serving_until_ready_for_any_role_of_the_mesh() -> None:
    mesh = SmallMesh()
    async with mesh.serve() as server, mesh.channel(server.port, role="auditor") as channel:
        before = await _ask(channel, KMS)
        server.ready()
        ready = await _ask(channel, KMS)
        server.not_ready()
        assert (before, ready, await _ask(channel, "")) == (NOT_SERVING, SERVING, NOT_SERVING)


async def test_health_of_an_unknown_service_is_not_found() -> None:
    mesh = SmallMesh()
    async with mesh.serve() as server, mesh.channel(server.port) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _ask(channel, "nobody")
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.NOT_FOUND, "SERVICE_UNKNOWN")


async def test_reflection_lists_the_services_for_any_role_of_the_mesh() -> None:
    mesh = SmallMesh()
    async with mesh.serve() as server, mesh.channel(server.port, role="auditor") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[no-untyped-call]
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        response = await call.read()
        await call.done_writing()
    assert KMS in {service.name for service in response.list_services_response.service}


async def test_draining_lets_a_running_call_finish_and_tells_watchers() -> None:
    running, finish = asyncio.Event(), asyncio.Event()

    async def statement() -> kms_pb2.GetStatementResponse:
        running.set()
        await finish.wait()
        return kms_pb2.GetStatementResponse(statement=b"done")

    mesh = SmallMesh()
    async with asyncio.timeout(20), mesh.channel_to(mesh.serve(statement=statement)) as (channel, leave):
        watch = _health(channel).Watch(health_pb2.HealthCheckRequest(service=KMS))
        assert (await watch.read()).status == SERVING
        call = kms_pb2_grpc.KmsServiceStub(channel).GetStatement(kms_pb2.GetStatementRequest(), timeout=15)
        answer = asyncio.ensure_future(call)
        await running.wait()
        leaving = asyncio.ensure_future(leave())
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        finish.set()
        assert (await answer).statement == b"done"
        await leaving


async def test_draining_ends_long_lived_streams_at_once_with_a_reason() -> None:
    async def tail() -> AsyncIterator[ledger_pb2.TailResponse]:
        yield ledger_pb2.TailResponse()
        await asyncio.Event().wait()

    mesh, rule = SmallMesh(), MethodRule(roles=frozenset({"router"}), long_lived=True)
    # The drain would outlast the test: only what ends the stream lets the server go.
    serving_still = mesh.serve(tail=tail, tail_rule=rule, drain_seconds=600)
    async with asyncio.timeout(20), mesh.channel_to(serving_still) as (channel, leave):
        call = ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest())
        await call.read()
        await leave()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
    assert (ended.value.code(), reason_of(ended.value)) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")


async def test_a_taken_port_is_refused_in_one_clear_line() -> None:
    mesh = SmallMesh()
    async with mesh.serve() as server:
        address = f"127.0.0.1:{server.port}"
        with pytest.raises(PortTaken, match=f"^{address} is taken by another process") as caught:
            async with serving(address, mesh.credentials(), [], []):
                pass
    assert caught.value.reason == "PORT_TAKEN"


async def test_an_address_that_is_not_ours_cannot_be_listened_on() -> None:
    with pytest.raises(CannotListen, match=r"192\.0\.2\.1"):
        async with serving("192.0.2.1:0", SmallMesh().credentials(), [], []):
            pass


def test_a_table_lists_only_methods_of_its_own_service() -> None:
    stray = ServiceBinding("a.A", lambda server: None, {"/b.B/Call": MethodRule(roles=frozenset())})
    with pytest.raises(MethodTableWrong, match=r"/b\.B/Call"):
        merge_methods([stray])
