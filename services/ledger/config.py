"""What the ledger is told at start. Who may write is not configuration: that is policy, and it is signed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.errors import MeshError
from libs.events.publish import EventSettings
from libs.identity.member import MemberSettings
from libs.transparency.cosignature import CosignerKey
from services.ledger.replication.settings import Replication


@dataclass(frozen=True, slots=True)
class WitnessSettings:
    """One witness that cosigns this log's checkpoints."""

    url: str
    """https:// and where it is reached; the protocol's paths follow."""
    verifier_key: str
    """The one of its keys whose cosignatures count here, in C2SP's text form."""
    ca: Path | None = None
    """PEM of who vouches for its host's name; absent: the system's own certificate authorities."""

    def __post_init__(self) -> None:
        if not self.url.startswith("https://") or self.url.endswith("/"):
            raise ValueError("url must begin with https:// and not end with /")
        try:
            CosignerKey.parse(self.verifier_key)
        except MeshError as error:
            raise ValueError(f"verifier_key: {error}") from error

    @property
    def key(self) -> CosignerKey:
        return CosignerKey.parse(self.verifier_key)


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
    """How much the stream may hold before it refuses publishers, bytes. From half of it on, what is logged goes."""
    stream_replicas: int = 1
    """How many nats-servers keep the stream."""
    checkpoint_seconds: float = 1.0
    """How often a log that has grown is signed, seconds; at once after every 10,000 entries."""
    scrub_megabytes_per_second: float = 8.0
    """How fast sealed segments are read again in the background, to find what a disk has lost, 10^6 bytes a second."""
    witnesses: tuple[WitnessSettings, ...] = ()
    """Who cosigns. Without any, nothing is witnessed."""
    witness_quorum: int = 0
    """How many of them must have cosigned a checkpoint before it counts as witnessed."""
    witness_seconds: float = 1.0
    """How often a log that has grown is shown to them, seconds."""
    replication: Replication = Replication()  # noqa: RUF009 - a frozen value
    """The members that keep the log together; absent: this one alone."""
    log_json: bool | None = None
    """True for JSON lines, false for readable ones; absent: readable on a terminal."""

    def __post_init__(self) -> None:
        if not self.dns_names and not self.ip_addresses:
            raise ValueError("dns_names or ip_addresses must name the HTTPS listener")
        if min(self.checkpoint_seconds, self.witness_seconds) <= 0:
            raise ValueError("checkpoint_seconds and witness_seconds must be above 0")
        if self.scrub_megabytes_per_second <= 0:
            raise ValueError("scrub_megabytes_per_second must be above 0")
        if not min(len(self.witnesses), 1) <= self.witness_quorum <= len(self.witnesses):
            raise ValueError("witness_quorum is from 1 to the number of witnesses; without any, 0")
        keys = [witness.key for witness in self.witnesses]
        if len({key.name for key in keys}) < len(keys) or len({key.public_key for key in keys}) < len(keys):
            raise ValueError("each of witnesses has a name and a key of its own")
        members = {each.instance for each in self.replication.members}
        if members and self.member.instance not in members:
            raise ValueError(f"replication.members must name this instance, {self.member.instance}")
