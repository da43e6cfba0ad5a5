"""It is responsible for what bounds a listener that anybody reaches: connections, what each may hold, and for how long
a call's message may be awaited.

gRPC runs a call that has one message once that has come. Who calls is known before, so a caller that sends none would
hold its place without having been asked who it is. Here such calls are run at once, and read their message themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from libs.errors import Code, MeshError


class MessageNotRead(MeshError):
    """The call's message did not come as it must. Nothing was done."""

    code = Code.INVALID_ARGUMENT
    reason = "MESSAGE_NOT_READ"


class MessageLate(MessageNotRead):
    """It did not come to its end in time."""

    code = Code.DEADLINE_EXCEEDED
    reason = "MESSAGE_LATE"


class MessageMissing(MessageNotRead):
    """The call ended without one, or it is larger than this listener takes."""

    reason = "MESSAGE_MISSING"


class MessageMalformed(MessageNotRead):
    """It is no message of this method's."""

    reason = "MESSAGE_MALFORMED"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one listener."""

    connections: int
    """How many may be open at once; the next one is closed as it comes."""
    calls: int
    """How many may run at once on each."""
    idle_seconds: float
    """How long one may take to its TLS session, and then have no call."""
    message_seconds: float
    """How long a call's message may take to its end."""
    call_seconds: float
    """The longest that a call may take: so long a connection that ends waits for those that run."""
    waiting: int = 1000
    """How many calls may have come that nobody has taken yet; each has at most 64 KiB. The next one is refused."""
    age_seconds: float = 600.0
    """After how long one ends. What a client does not read stays with it, also when the call is over."""

    def options(self) -> tuple[tuple[str, int], ...]:
        """Return what gRPC itself bounds."""
        return (
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_concurrent_streams", self.calls),
            ("grpc.server.max_pending_requests", self.waiting),
            ("grpc.server.max_pending_requests_hard_limit", self.waiting),
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.idle_seconds)),
            ("grpc.max_connection_idle_ms", _milliseconds(self.idle_seconds)),
            ("grpc.max_connection_age_ms", _milliseconds(self.age_seconds)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(self.call_seconds)),
            # Else it measures the way to each client, and lets it send 4 MiB of a message that nobody reads yet.
            ("grpc.http2.bdp_probe", 0),
        )


BOOTSTRAP = Bounds(connections=1000, calls=32, idle_seconds=30.0, message_seconds=10.0, call_seconds=120.0)
"""Of listeners that services call before they have a certificate."""


async def read_message(context: grpc.aio.ServicerContext[Any, Any], seconds: float) -> Any:
    """Return the only message of a call that may have several for gRPC. Raises `MessageNotRead`."""
    try:
        async with asyncio.timeout(seconds):
            message = await context.read()
    except TimeoutError as error:
        raise MessageLate(f"the message did not come within {seconds:g} s") from error
    except DecodeError as error:
        raise MessageMalformed("this is no message of this method's") from error
    if message is grpc.aio.EOF:
        raise MessageMissing("send the message that this method takes")
    return message


def taking_several(
    handler: grpc.RpcMethodHandler[Any, Any], run: Callable[..., Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler of the same messages that is run before any of them has come, and that writes by itself. On the
    wire a call of it is no other.
    """
    return grpc.stream_stream_rpc_method_handler(run, handler.request_deserializer, handler.response_serializer)


def _milliseconds(seconds: float) -> int:
    return max(int(seconds * 1000), 1)
