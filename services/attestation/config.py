"""What the attestation service is told at start."""

from __future__ import annotations

from dataclasses import dataclass

from libs.identity.member import MemberSettings


@dataclass(frozen=True, slots=True)
class Config:
    """The attestation service's configuration file."""

    member: MemberSettings
    bootstrap_listen: str
    """host:port of the listener for services that have no certificate yet."""
    pccs_url: str
    """Base URL of the Provisioning Certificate Caching Service that collateral comes from."""
    pccs_timeout_seconds: float = 10.0
    """How long one fetch from it may take, seconds."""
    bootstrap_calls_per_second: float = 50.0
    """How many calls the bootstrap listener takes from one address."""
    log_json: bool | None = None
    """True for JSON lines, false for readable ones; absent: readable on a terminal."""
