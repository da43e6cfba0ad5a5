"""What the registry is told at start."""

from __future__ import annotations

from dataclasses import dataclass

from libs.events.publish import EventSettings
from libs.identity.member import MemberSettings


@dataclass(frozen=True, slots=True)
class Config:
    """The registry's configuration file."""

    member: MemberSettings
    events: EventSettings
    ledger: str
    """host:port of the ledger's mesh listener."""
    other_ledgers: tuple[str, ...] = ()
    """host:port of the mesh listeners of the log's other members, where it has several."""
    lease_seconds: float = 15.0
    """How long a node is listed after its last heartbeat, seconds."""
    store_timeout_seconds: float = 3.0
    """How long one read or write of the key-value store may take, seconds."""
    session_days: float = 30.0
    """How long a session is kept after it ended, days. The ledger has it for ever."""
    session_bytes: int = 1_073_741_824
    """How many bytes of sessions are kept; beyond, the oldest that ended go first."""
    log_json: bool | None = None
    """True for JSON lines, false for readable ones; absent: readable on a terminal."""
