"""A mesh of one server for the tests of `libs.rpc`: real gRPC, real mutual TLS, a gate that knows roles only."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from teemesh.kms.v1 import kms_pb2, kms_pb2_grpc
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import Code, MeshError
from libs.rpc.channel import MESSAGE_BYTES, open_channel
from libs.rpc.middleware import standard_middleware
from libs.rpc.policies import Caller, MethodRule, ServiceBinding, merge_methods
from libs.rpc.server import Serving, serving
from tests.fakes.pki import ThrowawayCa

KMS = "teemesh.kms.v1.KmsService"
LEDGER = "teemesh.ledger.v1.LedgerService"
SERVER_NAME = "kms.mesh.test"
DEFAULT_RULES: Mapping[str, MethodRule] = {"GetStatement": MethodRule(roles=frozenset({"router"}))}

Statement = Callable[[], Awaitable[kms_pb2.GetStatementResponse]]
Tail = Callable[[], AsyncIterator[ledger_pb2.TailResponse]]


class LeaseEnded(MeshError):
    """The gate no longer believes this caller."""

    code = Code.UNAUTHENTICATED
    reason = "LEASE_ENDED"


class RoleGate:
    """Believes the SPIFFE ID in any certificate that TLS let through, until told otherwise."""

    def __init__(self) -> None:
        self.ended = False
        self._running: set[asyncio.Task[Any]] = set()

    def admit(self, certificate_pem: bytes, rule: MethodRule) -> Caller:
        if self.ended:
            raise LeaseEnded("present evidence again")
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (spiffe_id,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        role, instance = spiffe_id.split("/")[-2:]
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        der = certificate.public_bytes(Encoding.DER)
        return Caller(role, instance, spiffe_id, hashlib.sha256(spki).digest(), der, lease=None)

    @contextmanager
    def hold(self, caller: Caller, rule: MethodRule) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield
        finally:
            self._running.discard(task)

    def end(self) -> None:
        self.ended = True
        for task in self._running:
            task.cancel()


class KmsServicer(kms_pb2_grpc.KmsServiceServicer):
    def __init__(self, statement: Statement) -> None:
        self._statement = statement

    async def GetStatement(  # noqa: N802
        self, request: kms_pb2.GetStatementRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> kms_pb2.GetStatementResponse:
        return await self._statement()


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    def __init__(self, tail: Tail) -> None:
        self._tail = tail

    async def Tail(  # noqa: N802
        self, request: ledger_pb2.TailRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[ledger_pb2.TailResponse]:
        async for response in self._tail():
            yield response


def kms_servicer(statement: Statement) -> kms_pb2_grpc.KmsServiceServicer:
    return KmsServicer(statement)  # type: ignore[abstract]  # The other methods stay unimplemented.


def ledger_servicer(tail: Tail) -> ledger_pb2_grpc.LedgerServiceServicer:
    return LedgerServicer(tail)  # type: ignore[abstract]  # The other methods stay unimplemented.


async def _empty_statement() -> kms_pb2.GetStatementResponse:
    return kms_pb2.GetStatementResponse()


async def _empty_tail() -> AsyncIterator[ledger_pb2.TailResponse]:
    yield ledger_pb2.TailResponse()


class SmallMesh:
    """One CA, one gate, one server at a time."""

    def __init__(self) -> None:
        self.ca = ThrowawayCa()
        self.gate = RoleGate()
        self.server_key, self.server_certificate = self.ca.leaf("spiffe://mesh.test/kms/1", SERVER_NAME)

    def credentials(self) -> grpc.ServerCredentials:
        pair = (self.server_key, self.server_certificate)
        return grpc.ssl_server_credentials([pair], self.ca.pem, require_client_auth=True)

    @asynccontextmanager
    async def serve(
        self,
        *,
        statement: Statement = _empty_statement,
        tail: Tail = _empty_tail,
        rules: Mapping[str, MethodRule] = DEFAULT_RULES,
        tail_rule: MethodRule | None = None,
        drain_seconds: float = 5.0,
        answer_bytes: int = MESSAGE_BYTES,
    ) -> AsyncIterator[Serving]:
        kms = ServiceBinding(
            KMS,
            lambda server: kms_pb2_grpc.add_KmsServiceServicer_to_server(kms_servicer(statement), server),
            {f"/{KMS}/{method}": rule for method, rule in rules.items()},
            answer_bytes,
        )
        ledger = ServiceBinding(
            LEDGER,
            lambda server: ledger_pb2_grpc.add_LedgerServiceServicer_to_server(ledger_servicer(tail), server),
            {} if tail_rule is None else {f"/{LEDGER}/Tail": tail_rule},
        )
        bindings = [kms, ledger]
        middleware = standard_middleware(self.gate, merge_methods(bindings))
        async with serving(
            "127.0.0.1:0", self.credentials(), bindings, middleware, drain_seconds=drain_seconds
        ) as server:
            yield server

    @asynccontextmanager
    async def channel_to(
        self, server: AbstractAsyncContextManager[Serving]
    ) -> AsyncIterator[tuple[grpc.aio.Channel, Callable[[], Awaitable[None]]]]:
        """A channel to a ready server that stays open while the test makes the server leave."""
        async with AsyncExitStack() as serving_still:
            running = await serving_still.enter_async_context(server)
            running.ready()
            async with self.channel(running.port) as channel:
                yield channel, serving_still.aclose

    def channel(self, port: int, role: str = "router") -> grpc.aio.Channel:
        key, certificate = self.ca.leaf(f"spiffe://mesh.test/{role}/1", f"{role}.mesh.test")
        return open_channel(
            f"127.0.0.1:{port}",
            root_pem=self.ca.pem,
            server_name=SERVER_NAME,
            key_pem=key,
            certificate_pem=certificate,
        )
