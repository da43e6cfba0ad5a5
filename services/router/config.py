"""What the router is told at start. Each of its rooms says what may be decided about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from libs.events.publish import EventSettings
from libs.identity.member import MemberSettings
from services.router.face.settings import HttpSettings
from services.router.face.watching import MetricsSettings
from services.router.proof.settings import ReceiptSettings
from services.router.routing.foreign.access import ForeignAccess
from services.router.routing.settings import RoutingSettings
from services.router.workload.settings import KeysetSettings


@dataclass(frozen=True, slots=True)
class Config:
    """The router's configuration file."""

    MOVED: ClassVar[Mapping[str, str]] = {
        "https_listen": "http.listen",
        "grpc_listen": "http.grpc_listen",
        "max_body_bytes": "http.max_body_bytes",
        "request_seconds": "http.request_seconds",
        "keyset_days": "keyset.days",
        "dns_names": "keyset.dns_names",
        "ip_addresses": "keyset.ip_addresses",
        "repo_url": "keyset.repo_url",
        "ledger_seconds": "receipts.ledger_seconds",
    }
    """Where the keys of earlier files are now; they are read for one release."""

    member: MemberSettings
    events: EventSettings
    http: HttpSettings
    registry: tuple[str, ...]
    """host:port of the mesh listener of each instance of the registry, in order of preference."""
    ledger: str
    """host:port of the ledger's mesh listener."""
    other_ledgers: tuple[str, ...] = ()
    """host:port of the mesh listeners of the log's other members, where it has several."""
    keyset: KeysetSettings = field(default_factory=KeysetSettings)
    receipts: ReceiptSettings = field(default_factory=ReceiptSettings)
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    foreign: Mapping[str, ForeignAccess] = field(default_factory=dict)
    """Keys and authorities for foreign providers, by their names in policy."""
    log_json: bool | None = None
    """True for JSON lines, false for readable ones; absent: readable on a terminal."""

    def __post_init__(self) -> None:
        if not self.registry:
            raise ValueError("registry must name at least one instance")
