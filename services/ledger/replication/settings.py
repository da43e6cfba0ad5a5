"""It is responsible for what a member is told of the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemberAddress:
    """One member of the group."""

    instance: str
    """Its instance within the role, as in its own table [member]."""
    address: str
    """host:port of its mesh listener."""


@dataclass(frozen=True, slots=True)
class Replication:
    """The TOML table [replication]: the same on every member, timings included."""

    members: tuple[MemberAddress, ...] = ()
    """All members, this one among them; none or one: the log is on this machine alone."""
    heartbeat_seconds: float = 0.5
    """How often the writer says that it is there, seconds."""
    election_seconds: float = 3.0
    """How long a writer may be silent before another is sought, seconds; each member waits up to twice as long. More
    than a disk takes for a few syncs: a vote, and whatever a writer is answered, is synced first."""

    def __post_init__(self) -> None:
        count = len(self.members)
        if count > 1 and count % 2 == 0:
            raise ValueError("members must be one, or three or more and odd: an even number survives no more failures")
        for named in ([each.instance for each in self.members], [each.address for each in self.members]):
            if len(set(named)) != count:
                raise ValueError("members must have an instance and an address each")
        if not 0 < 2 * self.heartbeat_seconds < self.election_seconds:
            raise ValueError("election_seconds must be more than two heartbeats")

    @property
    def is_group(self) -> bool:
        """Whether the log is on several machines."""
        return len(self.members) > 1

    @property
    def majority(self) -> int:
        return len(self.members) // 2 + 1

    def others(self, own: str) -> tuple[MemberAddress, ...]:
        """Return the members but one."""
        return tuple(each for each in self.members if each.instance != own)
