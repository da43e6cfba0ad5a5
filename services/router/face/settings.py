"""Responsible for what an operator decides about clients' listeners."""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.router.face.origins import EVERY

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
    allowed_origins: tuple[str, ...] = ()
    """Origins whose web pages may call this service from a browser, "https://chat.example.org"; "*" for every one."""

    def __post_init__(self) -> None:
        for origin in self.allowed_origins:
            if origin != EVERY and not _ORIGIN.fullmatch(origin):
                raise ValueError("http.allowed_origins must hold origins, scheme://host or scheme://host:port, or *")
