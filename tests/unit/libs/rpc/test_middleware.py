from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.rpc.calls import Call
from libs.rpc.channel import open_channel
from libs.rpc.deadline import DeadlineSpent, outgoing_timeout, remaining_seconds
from libs.rpc.errors import reason_of, to_mesh_error
from libs.rpc.middleware import CertificateRequired, allow_listed, allow_peers, public_middleware
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding, current_caller
from libs.rpc.server import serving
from tests.fakes.small_mesh import KMS, SERVER_NAME, RoleGate, SmallMesh, kms_servicer

ROUTERS = MethodRule(roles=frozenset({"router"}))
STREAM = MethodRule(roles=frozenset({"router"}), long_lived=True)


async def _refusal(call: Any) -> tuple[grpc.StatusCode, str | None, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), reason_of(caught.value), caught.value.details()


async def _statement_refusal(
    channel: grpc.aio.Channel, timeout: float | None = 5.0
) -> tuple[grpc.StatusCode, str | None, str | None]:
    stub = kms_pb2_grpc.KmsServiceStub(channel)
    return await _refusal(stub.GetStatement(kms_pb2.GetStatementRequest(), timeout=timeout))


async def test_a_listed_role_is_answered_and_known_by_its_certificate() -> None:
    async def statement() -> kms_pb2.GetStatementResponse:
        return kms_pb2.GetStatementResponse(statement=current_caller().spiffe_id.encode())

    mesh = SmallMesh()
    async with mesh.serve(statement=statement) as server, mesh.channel(server.port) as channel:
        stub = kms_pb2_grpc.KmsServiceStub(channel)
        response = await stub.GetStatement(kms_pb2.GetStatementRequest(), timeout=5)
    assert response.statement == b"spiffe://mesh.test/router/1"


async def test_without_a_client_certificate_no_connection_comes_about() -> None:
    mesh = SmallMesh()
    async with mesh.serve() as server:
        target = f"127.0.0.1:{server.port}"
        async with open_channel(target, root_pem=mesh.ca.pem, server_name=SERVER_NAME) as channel:
            code, _, _ = await _statement_refusal(channel)
    assert code is grpc.StatusCode.UNAVAILABLE


async def test_another_role_is_refused_with_a_reason() -> None:
    mesh = SmallMesh()
    async with mesh.serve() as server, mesh.channel(server.port, role="node") as channel:
        code, reason, _ = await _statement_refusal(channel)
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")


async def test_an_unlisted_method_admits_nobody() -> None:
    mesh = SmallMesh()
    async with mesh.serve(rules={}) as server, mesh.channel(server.port) as channel:
        code, reason, _ = await _statement_refusal(channel)
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "METHOD_NOT_ALLOWED")


async def test_a_unary_call_without_a_deadline_is_refused() -> None:
    mesh = SmallMesh()
    async with mesh.serve() as server, mesh.channel(server.port) as channel:
        code, reason, _ = await _statement_refusal(channel, timeout=None)
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DEADLINE_REQUIRED")


async def test_a_bug_tells_the_caller_nothing_and_the_log_everything() -> None:
    async def statement() -> kms_pb2.GetStatementResponse:
        raise ZeroDivisionError("the secret of the house")

    mesh = SmallMesh()
    with capture_logs() as lines:
        async with mesh.serve(statement=statement) as server, mesh.channel(server.port) as channel:
            code, reason, details = await _statement_refusal(channel)
    assert (code, reason, details) == (grpc.StatusCode.INTERNAL, "INTERNAL", "internal error")
    (bug,) = [line for line in lines if line["event"] == "bug"]
    assert isinstance(bug["exc_info"], ZeroDivisionError)


async def test_a_refusal_out_of_a_task_group_keeps_its_reason() -> None:
    async def refuse() -> None:
        raise DeadlineSpent("nothing left")

    async def statement() -> kms_pb2.GetStatementResponse:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refuse())
        return kms_pb2.GetStatementResponse()

    mesh = SmallMesh()
    async with mesh.serve(statement=statement) as server, mesh.channel(server.port) as channel:
        code, reason, _ = await _statement_refusal(channel)
    assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_SPENT")


async def test_a_stream_passes_the_same_middleware_and_maps_errors_after_its_first_message() -> None:
    async def tail() -> AsyncIterator[ledger_pb2.TailResponse]:
        assert current_caller().role == "router"
        yield ledger_pb2.TailResponse()
        raise DeadlineSpent("nothing left")

    mesh = SmallMesh()
    async with mesh.serve(tail=tail, tail_rule=STREAM) as server, mesh.channel(server.port) as channel:
        call = ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest())
        assert await call.read() == ledger_pb2.TailResponse()
        code, reason, _ = await _refusal(call.read())
    assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_SPENT")


async def test_a_stream_that_is_not_long_lived_needs_a_deadline() -> None:
    mesh = SmallMesh()
    async with mesh.serve(tail_rule=ROUTERS) as server, mesh.channel(server.port) as channel:
        call = ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest())
        code, reason, _ = await _refusal(call.read())
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DEADLINE_REQUIRED")


async def test_a_stream_ends_with_its_lease_and_says_why() -> None:
    async def tail() -> AsyncIterator[ledger_pb2.TailResponse]:
        yield ledger_pb2.TailResponse()
        await asyncio.Event().wait()

    mesh = SmallMesh()
    async with mesh.serve(tail=tail, tail_rule=STREAM) as server, mesh.channel(server.port) as channel:
        call = ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest())
        await call.read()
        mesh.gate.end()
        code, reason, _ = await _refusal(call.read())
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "LEASE_ENDED")


async def test_a_stream_that_ends_while_its_first_response_is_sent_says_why() -> None:
    async def tail() -> AsyncIterator[ledger_pb2.TailResponse]:
        asyncio.get_running_loop().call_soon(mesh.gate.end)
        yield ledger_pb2.TailResponse()
        await asyncio.Event().wait()

    mesh = SmallMesh()
    async with mesh.serve(tail=tail, tail_rule=STREAM) as server, mesh.channel(server.port) as channel:
        call = ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest())
        code, reason, _ = await _refusal(call.read())
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "LEASE_ENDED")


async def test_a_generator_is_closed_when_its_client_goes() -> None:
    closed = asyncio.Event()

    async def tail() -> AsyncIterator[ledger_pb2.TailResponse]:
        try:
            yield ledger_pb2.TailResponse()
            await asyncio.Event().wait()
        finally:
            closed.set()

    mesh = SmallMesh()
    async with mesh.serve(tail=tail, tail_rule=STREAM) as server, mesh.channel(server.port) as channel:
        call = ledger_pb2_grpc.LedgerServiceStub(channel).Tail(ledger_pb2.TailRequest())
        await call.read()
        call.cancel()
        async with asyncio.timeout(5):
            await closed.wait()


async def test_outgoing_calls_spend_what_the_caller_left() -> None:
    seen: list[float] = []

    async def statement() -> kms_pb2.GetStatementResponse:
        seen.extend((remaining_seconds() or 0.0, outgoing_timeout(60.0), outgoing_timeout(0.5)))
        return kms_pb2.GetStatementResponse()

    mesh = SmallMesh()
    async with mesh.serve(statement=statement) as server, mesh.channel(server.port) as channel:
        await kms_pb2_grpc.KmsServiceStub(channel).GetStatement(kms_pb2.GetStatementRequest(), timeout=20)
    left, outgoing, limited = seen
    assert outgoing < left <= 20
    assert limited == 0.5


async def test_a_remote_refusal_keeps_code_and_reason() -> None:
    mesh = SmallMesh()
    async with mesh.serve() as server, mesh.channel(server.port, role="node") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await kms_pb2_grpc.KmsServiceStub(channel).GetStatement(kms_pb2.GetStatementRequest(), timeout=5)
    error = to_mesh_error(caught.value)
    assert (error.code, error.reason) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")


async def test_a_public_listener_serves_its_table_and_limits_each_address() -> None:
    async def statement() -> kms_pb2.GetStatementResponse:
        return kms_pb2.GetStatementResponse()

    mesh = SmallMesh()
    binding = ServiceBinding(
        KMS,
        lambda server: kms_pb2_grpc.add_KmsServiceServicer_to_server(kms_servicer(statement), server),
        {f"/{KMS}/GetStatement": MethodRule(roles=ANY_ROLE, lease=False)},
    )
    credentials = grpc.ssl_server_credentials([(mesh.server_key, mesh.server_certificate)])
    middleware = public_middleware(binding.methods, calls_per_second=0.25)  # One call, then none for seconds.
    async with (
        serving("127.0.0.1:0", credentials, [binding], middleware) as server,
        open_channel(f"127.0.0.1:{server.port}", root_pem=mesh.ca.pem, server_name=SERVER_NAME) as channel,
    ):
        stub = kms_pb2_grpc.KmsServiceStub(channel)
        _, unlisted, _ = await _refusal(stub.GetPolicy(kms_pb2.GetPolicyRequest(), timeout=5))
        await stub.GetStatement(kms_pb2.GetStatementRequest(), timeout=5)
        _, limited, _ = await _statement_refusal(channel)
    assert (unlisted, limited) == ("METHOD_NOT_ALLOWED", "RATE_LIMITED")


async def _must_not_run() -> None:
    raise AssertionError("the call was let in")


class _Connection:
    """As much of gRPC's context as says what the connection is."""

    def __init__(self, properties: Mapping[str, Sequence[bytes]]) -> None:
        self._properties = properties

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return self._properties


@pytest.mark.parametrize(
    "properties",
    [{}, {"ssl_tls_version": [b"TLSv1.2"], "x509_pem_cert": [b"x"]}, {"ssl_tls_version": [b"TLSv1.3"]}],
    ids=["plaintext", "old TLS", "no certificate"],
)
async def test_a_connection_that_proves_no_key_is_refused(properties: Mapping[str, Sequence[bytes]]) -> None:
    call = Call("/s/M", cast(Any, _Connection(properties)))
    with pytest.raises(CertificateRequired):
        await allow_peers(RoleGate(), {"/s/M": ROUTERS})(call, _must_not_run)


async def test_a_public_listener_refuses_old_tls() -> None:
    call = Call("/s/M", cast(Any, _Connection({"ssl_tls_version": [b"TLSv1.2"]})))
    with pytest.raises(CertificateRequired):
        await allow_listed({"/s/M": ROUTERS}, None)(call, _must_not_run)
