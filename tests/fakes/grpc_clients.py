"""The router's gRPC face on a free port, both of its services, and a client that behaves."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from teemesh.inference.v1 import aci_pb2_grpc
from teemesh.inference.v1 import inference_pb2 as pb
from teemesh.inference.v1 import inference_pb2_grpc as pb_grpc

from libs.rpc.errors import reason_of
from libs.rpc.middleware import public_middleware
from libs.rpc.policies import merge_methods
from libs.rpc.server import serving
from libs.rpc.tls import load_client_context
from services.router.face.aci_servicer import AciServicer, aci_binding
from services.router.face.bodies import BodyRoom
from services.router.face.door import VISIT_SECONDS, Door
from services.router.face.places import CallsBusy
from services.router.face.servicer import ENVELOPE_BYTES, RouterServicer, router_binding
from services.router.face.settings import DELIVERY_SECONDS
from services.router.routing.models import Models
from services.router.routing.settings import RoutingSettings
from tests.fakes.https_clients import (
    KEY,
    MAX_BODY_BYTES,
    SETTINGS,
    DirectoryTwin,
    ReportsTwin,
    documents_of,
    tenants_of,
)
from tests.fakes.pki import ThrowawayCa
from tests.fakes.routers import CHAT, PATIENCE_SECONDS, RouterBench, prompt, router_bench

AUTHORIZED = (("authorization", f"Bearer {KEY}"),)


@dataclass(slots=True)
class Line:
    """A running listener, what is behind it, and a connection to it."""

    bench: RouterBench
    directory: DirectoryTwin
    room: BodyRoom
    servicer: RouterServicer
    stop: Callable[[], Awaitable[None]]
    stub: pb_grpc.InferenceServiceStub
    aci: aci_pb2_grpc.AciServiceStub
    port: int
    ca_pem: bytes
    visitors_refused: list[str] = field(default_factory=list)

    @property
    def tls_h2(self) -> ssl.SSLContext:
        """For whoever speaks HTTP/2 and says what it likes."""
        context = load_client_context(ca_pem=self.ca_pem)
        context.set_alpn_protocols(["h2"])
        return context

    def infer(
        self,
        *,
        body: bytes | None = None,
        endpoint: str = CHAT,
        request_id: str = "req-1",
        metadata: Any = AUTHORIZED,
        timeout: float | None = PATIENCE_SECONDS,
    ) -> Any:
        request = pb.InferRequest(endpoint=endpoint, body=body or prompt(), request_id=request_id)
        return self.stub.Infer(request, timeout=timeout, metadata=metadata)

    async def parts(self, **changes: Any) -> list[pb.InferResponse]:
        return [part async for part in self.infer(**changes)]

    async def answered(self, **changes: Any) -> list[pb.InferResponse] | None:
        """The answer, or None where there is no place for the call now."""
        try:
            return await self.parts(**changes)
        except grpc.aio.AioRpcError as error:
            if reason_of(error) == CallsBusy.reason:
                return None
            raise

    async def refused(self, **changes: Any) -> tuple[grpc.StatusCode, str | None]:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.parts(**changes)
        return error.value.code(), reason_of(error.value)


@asynccontextmanager
async def grpc_line(
    folder: Path,
    *,
    bench: RouterBench | None = None,
    routing: RoutingSettings | None = None,
    visit_seconds: float = VISIT_SECONDS,
    request_seconds: float = 60.0,
    delivery_seconds: float = DELIVERY_SECONDS,
    **limits: float,
) -> AsyncIterator[Line]:
    """`bench`: what is behind it, if it runs already. `limits`: what the table [http] says otherwise."""
    settings = replace(SETTINGS, **cast(Any, {"idle_seconds": PATIENCE_SECONDS, "body_seconds": 30.0, **limits}))
    ca = ThrowawayCa()
    key, certificate = ca.leaf(None, "localhost", ip="127.0.0.1")
    directory, room = DirectoryTwin(), BodyRoom(4 * MAX_BODY_BYTES, MAX_BODY_BYTES)
    visitors_refused: list[str] = []
    behind = nullcontext(bench) if bench else router_bench(folder, allowances=lambda: directory.now, routing=routing)
    async with behind as bench:
        servicer = RouterServicer(
            bench.gates,
            bench.exchanges,
            Models(bench.upstreams, bench.foreign),
            bench.store.receipts,
            room,
            MAX_BODY_BYTES,
            request_seconds,
            delivery_seconds,
        )
        clients = [
            router_binding(servicer),
            aci_binding(AciServicer(documents_of(bench, directory, cast(Any, ReportsTwin())))),
        ]
        door = Door(
            tenants_of(directory),
            bench.usage,
            bench.metrics.refusals,
            visitors_refused.append,
            calls=settings.max_grpc_calls,
            visit_seconds=visit_seconds,
        )
        async with bench.issuance.recording(), AsyncExitStack() as stopping:
            server = await stopping.enter_async_context(
                serving(
                    "127.0.0.1:0",
                    grpc.ssl_server_credentials([(key, certificate)]),
                    clients,
                    (*public_middleware(merge_methods(clients)), door.middleware),
                    drain_seconds=0.5,
                    message_bytes=MAX_BODY_BYTES + ENVELOPE_BYTES,
                    bounds=settings.grpc_bounds(),
                )
            )
            async with grpc.aio.secure_channel(
                f"localhost:{server.port}", grpc.ssl_channel_credentials(ca.pem)
            ) as channel:
                yield Line(
                    bench,
                    directory,
                    room,
                    servicer,
                    stopping.aclose,
                    pb_grpc.InferenceServiceStub(channel),
                    aci_pb2_grpc.AciServiceStub(channel),
                    server.port,
                    ca.pem,
                    visitors_refused,
                )
