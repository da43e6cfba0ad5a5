"""Responsible for what an operator decides about clients' listeners."""

from __future__ import annotations

import re
from dataclasses import dataclass

from libs.rpc.bounds import Bounds
from services.router.face.origins import EVERY

DELIVERY_SECONDS = 30.0
"""How long, beyond its own time, a request's answer may take to be read by its client."""
_ORIGIN = re.compile(r"https?://([a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[1-9][0-9]{0,4})?")


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The TOML table [http]. What bounds a request bounds it over gRPC, too."""

    listen: str
    """host:port of the HTTPS listener for clients."""
    grpc_listen: str
    """host:port of the gRPC listener for clients: server TLS and an API key."""
    max_body_bytes: int = 1 << 20
    """The largest request body, bytes."""
    request_seconds: float = 120.0
    """How long one request may take from first to last byte, seconds."""
    max_head_bytes: int = 16 << 10
    """The largest request head, its line and all its fields together, bytes. Half of it is left for the target."""
    max_bodies_bytes: int = 256 << 20
    """How much the bodies of all requests that run may take together, bytes, and at least one largest body;
    more is refused with 503. One tenant's may take a quarter of it, and at least one largest body."""
    max_connections: int = 1000
    """How many connections each of both listeners may have open at once. Over HTTPS the oldest on which no tenant's key
    was shown makes place for the next one, or else on which nothing runs; else that is closed as it comes."""
    max_streams: int = 100
    """How many requests may run at once on one HTTP/2 connection, gRPC's too."""
    max_connection_requests: int = 1000
    """After how many requests a connection ends; the client makes another."""
    max_grpc_calls: int = 512
    """How many calls of tenants may run at once on the gRPC listener; the next one is refused, and one more of a tenant
    that has as many as are left free. Each may hold one largest body. There are a quarter as many for callers without
    a key, and for keys to be looked up."""
    idle_seconds: float = 30.0
    """How long a connection may take to its TLS session, then to a whole request head, the first or the next one,
    seconds. One of gRPC ends when it has had no call for so long."""
    body_seconds: float = 30.0
    """How long a request body may take to its end, seconds, and a message over gRPC."""
    stall_seconds: float = 30.0
    """How long a client may take none of what is written to it, seconds."""
    reads_per_second: float = 200.0
    """How many receipts, commitments, signatures and pages of usage one tenant may read at this router, a second; ten
    seconds' worth at once."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose web pages may call this service from a browser, "https://chat.example.org"; "*" for every one."""

    def grpc_bounds(self) -> Bounds:
        """Return what bounds the gRPC listener."""
        return Bounds(
            connections=self.max_connections,
            calls=self.max_streams,
            idle_seconds=self.idle_seconds,
            message_seconds=self.body_seconds,
            call_seconds=self.body_seconds + self.request_seconds + 2 * DELIVERY_SECONDS,
        )

    def __post_init__(self) -> None:
        for name in (
            "max_body_bytes",
            "request_seconds",
            "max_head_bytes",
            "max_bodies_bytes",
            "max_connections",
            "max_streams",
            "max_connection_requests",
            "max_grpc_calls",
            "idle_seconds",
            "body_seconds",
            "stall_seconds",
            "reads_per_second",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"http.{name} must be positive")
        for origin in self.allowed_origins:
            if origin != EVERY and not _ORIGIN.fullmatch(origin):
                raise ValueError("http.allowed_origins must hold origins, scheme://host or scheme://host:port, or *")
