"""What a job is told at start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.events.publish import EventSettings
from libs.identity.member import MemberSettings
from libs.jobs.sealed_inputs import SealedInput


@dataclass(frozen=True, slots=True)
class JobSettings:
    """A job's configuration file."""

    member: MemberSettings
    events: EventSettings
    ledger: str
    """host:port of the ledger's mesh listener."""
    other_ledgers: tuple[str, ...] = ()
    """host:port of the mesh listeners of the log's other members, where it has several."""
    registry: tuple[str, ...] = ()
    """host:port of the mesh listener of each instance of the registry, which has the policy versions."""
    ledger_seconds: float = 60.0
    """How long the ledger may take to acknowledge a stage, seconds."""
    sealed: Mapping[str, SealedInput] = field(default_factory=dict)
    """Inputs that come encrypted, by the names under which stages read them."""
    log_json: bool | None = None
    """True for JSON lines, false for readable ones; absent: readable on a terminal."""
