"""What the router is told at start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.events.publish import EventSettings
from libs.identity.member import MemberSettings
from services.router.routing.foreign.access import ForeignAccess


@dataclass(frozen=True, slots=True)
class Config:
    """The router's configuration file."""

    member: MemberSettings
    events: EventSettings
    registry: tuple[str, ...]
    """host:port of the mesh listener of each instance of the registry, in order of preference."""
    ledger: str
    """host:port of the ledger's mesh listener."""
    https_listen: str
    """host:port of the HTTPS listener for clients."""
    grpc_listen: str
    """host:port of the gRPC listener for clients: server TLS and an API key."""
    other_ledgers: tuple[str, ...] = ()
    """host:port of the mesh listeners of the log's other members, where it has several."""
    dns_names: tuple[str, ...] = ()
    """Names in the outward certificate, beside the IP addresses."""
    ip_addresses: tuple[str, ...] = ()
    """IP addresses in the outward certificate."""
    repo_url: str | None = None
    """Where the measured code's source is published; goes into the attestation report."""
    keyset_days: int = 7
    """How long the keyset, and the outward TLS key in it, is valid, days."""
    max_body_bytes: int = 1 << 20
    """The largest request body, bytes."""
    request_seconds: float = 120.0
    """How long one request may take from first to last byte, seconds."""
    ledger_seconds: float = 5.0
    """How long the ledger may take to acknowledge a receipt before the response errors, seconds."""
    foreign: Mapping[str, ForeignAccess] = field(default_factory=dict)
    """Keys and authorities for foreign providers, by their names in policy."""
    log_json: bool | None = None
    """True for JSON lines, false for readable ones; absent: readable on a terminal."""

    def __post_init__(self) -> None:
        if not self.registry:
            raise ValueError("registry must name at least one instance")
