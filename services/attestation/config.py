"""What the attestation service is told at start."""

from __future__ import annotations

from dataclasses import dataclass

from libs.identity.member import MemberSettings

_MIN_ARCHIVE_BYTES = 16 * 1024 * 1024


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
    root_crl_url: str = ""
    """Where the vendor's root CRL is; empty: at the PCCS. The vendor's own service does not hand it out."""
    nras_url: str | None = None
    """Base URL of the GPU vendor's token service; absent: no node that must show a GPU is admitted."""
    nras_timeout_seconds: float = 20.0
    """How long one verdict from it may take, seconds."""
    bootstrap_calls_per_second: float = 50.0
    """How many calls the bootstrap listener takes from one address."""
    registry: tuple[str, ...] = ()
    """host:port of the mesh listener of each instance of the registry, whose nodes are appraised again and again, in
    order of preference; absent: none are."""
    sweep_seconds: float = 60.0
    """How often every node with a live lease is appraised, seconds."""
    archive_bytes: int = 1024 * 1024 * 1024
    """How much the archive of past appraisals may hold, bytes; the oldest go first."""
    log_json: bool | None = None
    """True for JSON lines, false for readable ones; absent: readable on a terminal."""

    def __post_init__(self) -> None:
        if self.sweep_seconds < 1:
            raise ValueError("sweep_seconds must be 1 or more")
        if self.archive_bytes < _MIN_ARCHIVE_BYTES:
            raise ValueError(f"archive_bytes must be {_MIN_ARCHIVE_BYTES} or more")
