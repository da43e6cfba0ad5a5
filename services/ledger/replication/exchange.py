"""What members of a log say to one another, as values."""

from __future__ import annotations

from dataclasses import dataclass

from services.ledger.replication.frame_files import FrameName
from services.ledger.replication.promise import NOTHING, Extent


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a candidate says of itself."""

    epoch: int
    last_epoch: int
    """Of the last frame in its log."""
    size: int

    @property
    def extent(self) -> Extent:
        return Extent(self.last_epoch, self.size)


@dataclass(frozen=True, slots=True)
class Vote:
    """What a member answers a candidate."""

    granted: bool
    epoch: int
    settled: bool
    """Whether it holds all that it ever answered for, or the candidate does."""
    keyring: tuple[int, int]
    """Version of its copy of the keyring."""
    extent: Extent = NOTHING
    """How far its own log goes. Members of earlier releases do not say."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What a member reaches of that which a writer needs."""

    witnesses: bool
    """So many that a writer may begin."""
    kms: bool
    broker: bool

    @property
    def all(self) -> bool:
        return self.witnesses and self.kms and self.broker

    def __str__(self) -> str:
        missing = [name for name in ("witnesses", "kms", "broker") if not getattr(self, name)]
        return f"without {', '.join(missing)}" if missing else "all"


NOTHING_REACHED = Reached(witnesses=False, kms=False, broker=False)


@dataclass(frozen=True, slots=True)
class Heading:
    """What a writer says with its frames."""

    epoch: int
    previous: FrameName
    committed: int
    begun: bool
    """Whether `committed` is all that a majority holds, and not only what is known of earlier writers."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a member answers a writer."""

    epoch: int
    held: FrameName | None = None
    recent: tuple[FrameName, ...] = ()
