"""What the ledger is told at start. Who may write is not configuration: that is policy, and it is signed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.events.publish import EventSettings
from libs.identity.member import MemberSettings


@dataclass(frozen=True, slots=True)
class Config:
    """The ledger's configuration file."""

    member: MemberSettings
    events: EventSettings
    """The outbox is that of the ledger's own entries; the log number says which log this ledger keeps."""
    data_dir: Path
    """Folder of the log: segments, keyring, checkpoints. Made at the first start; one process at a time."""
    https_listen: str
    """host:port of the HTTPS listener that serves the newest checkpoint to anyone."""
    dns_names: tuple[str, ...] = ()
    """Names in the certificate of the HTTPS listener, beside the IP addresses."""
    ip_addresses: tuple[str, ...] = ()
    """IP addresses in the certificate of the HTTPS listener."""
    stream_max_bytes: int = 2 * 1024**3
    """How much the stream may hold before it refuses publishers, bytes."""
    stream_replicas: int = 1
    """How many nats-servers keep the stream."""
    checkpoint_seconds: float = 1.0
    """How often a log that has grown is signed, seconds; at once after every 10,000 entries."""
    scrub_megabytes_per_second: float = 8.0
    """How fast sealed segments are read again in the background, to find what a disk has lost, 10^6 bytes a second."""
    log_json: bool | None = None
    """True for JSON lines, false for readable ones; absent: readable on a terminal."""

    def __post_init__(self) -> None:
        if not self.dns_names and not self.ip_addresses:
            raise ValueError("dns_names or ip_addresses must name the HTTPS listener")
        if self.checkpoint_seconds <= 0:
            raise ValueError("checkpoint_seconds must be above 0")
        if self.scrub_megabytes_per_second <= 0:
            raise ValueError("scrub_megabytes_per_second must be above 0")
