"""Responsible for what an operator decides about the keyset and its certificate."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeysetSettings:
    """The TOML table [keyset]."""

    days: int = 7
    """How long the keyset, and the outward TLS key in it, is valid, days."""
    dns_names: tuple[str, ...] = ()
    """Names in the outward certificate, beside the IP addresses."""
    ip_addresses: tuple[str, ...] = ()
    """IP addresses in the outward certificate."""
    repo_url: str | None = None
    """Where the measured code's source is published; goes into the attestation report."""
