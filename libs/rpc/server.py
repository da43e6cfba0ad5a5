"""It is responsible for a server's life: bound, not yet ready, ready, draining, gone."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from libs.errors import Code, MeshError
from libs.rpc.address import AddressMalformed, parse_address
from libs.rpc.bounds import Bounds
from libs.rpc.calls import Middleware, MiddlewareInterceptor
from libs.rpc.channel import MESSAGE_BYTES
from libs.rpc.health import SERVICE as HEALTH_SERVICE
from libs.rpc.health import Health
from libs.rpc.policies import ServiceBinding, merge_methods
from libs.rpc.streams import LongLivedStreams

_OPTIONS = (
    # Two servers on one port would share its calls: the second must fail instead.
    ("grpc.so_reuseport", 0),
    # A connection whose other end vanished must not hold its calls; clients ping too (channel.py).
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


class PortTaken(MeshError):
    """Another process listens on the address."""

    code = Code.UNAVAILABLE
    reason = "PORT_TAKEN"


class CannotListen(MeshError):
    """The address cannot be listened on, or the server's key and certificate do not fit together."""

    code = Code.UNAVAILABLE
    reason = "CANNOT_LISTEN"


class Serving:
    """A server that is bound and answers."""

    def __init__(self, port: int, health: Health) -> None:
        self.port = port
        self._health = health

    def ready(self) -> None:
        """Report SERVING."""
        self._health.set(True)

    def not_ready(self) -> None:
        """Report NOT_SERVING; calls still run."""
        self._health.set(False)


@asynccontextmanager
async def serving(
    address: str,
    credentials: grpc.ServerCredentials,
    bindings: Sequence[ServiceBinding],
    middleware: Sequence[Middleware],
    *,
    drain_seconds: float = 10.0,
    message_bytes: int = MESSAGE_BYTES,
    bounds: Bounds | None = None,
) -> AsyncIterator[Serving]:
    """Serve on `address` ("host:port", port 0 for any) with health and reflection beside the bindings.

    A request's message may have `message_bytes`; gRPC itself refuses what is more as RESOURCE_EXHAUSTED. A listener
    that anybody reaches needs `bounds`: middleware then runs before a call's message has come. On leaving, new calls
    are refused, long-lived streams end and other running calls have `drain_seconds` to. Raises `PortTaken`,
    `CannotListen`, `MethodTableWrong`.
    """
    streams = LongLivedStreams(merge_methods(bindings))
    names = [binding.name for binding in bindings]
    # Innermost, so that the others see the error that ends a stream.
    interceptor = MiddlewareInterceptor(
        [*middleware, streams.middleware], message_seconds=None if bounds is None else bounds.message_seconds
    )
    server = grpc.aio.server(
        interceptors=(interceptor,),
        options=(
            *_OPTIONS,
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_send_message_length", max((each.answer_bytes for each in bindings), default=MESSAGE_BYTES)),
            *(() if bounds is None else bounds.options()),
        ),
    )
    for binding in bindings:
        binding.add(server)
    health = Health(names)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)  # type: ignore[no-untyped-call]
    shown = [*names, HEALTH_SERVICE, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(shown, server)  # type: ignore[no-untyped-call]
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise _why_unbound(address) from error
    await server.start()
    try:
        yield Serving(port, health)
    finally:
        health.set(False)
        streams.end()
        await server.stop(drain_seconds)


def _why_unbound(address: str) -> MeshError:
    """gRPC says only that binding failed: try it, to tell the operator which mistake to mend."""
    try:
        parsed = parse_address(address)
        with socket.create_server((parsed.host, parsed.port), family=parsed.family):
            return CannotListen(f"cannot serve on {address}: check the server's key and certificate")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return PortTaken(f"{address} is taken by another process; stop it or change the port")
        return CannotListen(f"cannot listen on {address}: {error.strerror}")
    except AddressMalformed as error:
        return CannotListen(f"cannot listen: {error}")
