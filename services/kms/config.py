"""What the KMS is told at start. Who may have what is not configuration: that is policy, and it is signed."""

from __future__ import annotations

from dataclasses import dataclass

from libs.events.publish import EventSettings
from libs.identity.member import MemberSettings
from services.kms.joining import JoinSettings


@dataclass(frozen=True, slots=True)
class Config:
    """The KMS's configuration file."""

    member: MemberSettings
    events: EventSettings
    ledger: str
    """host:port of the ledger's mesh listener, which acknowledges the KMS's decisions."""
    bootstrap_listen: str
    """host:port of the listener for services that have no certificate yet."""
    statement_seconds: float = 60.0
    """How often a new policy statement is signed, seconds; also at once after every new version."""
    bootstrap_calls_per_second: float = 50.0
    """How many calls the bootstrap listener takes from one address."""
    join: JoinSettings | None = None
    """Where a new instance of the KMS gets the root; absent: the first instance, which makes it."""
    log_json: bool | None = None
    """True for JSON lines, false for readable ones; absent: readable on a terminal."""
