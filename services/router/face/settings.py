"""Responsible for what an operator decides about clients' listeners."""

from __future__ import annotations

from dataclasses import dataclass


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
