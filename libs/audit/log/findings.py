"""It is responsible for what a reading says of a log: each thing that is wrong, where it is, and how bad that is."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from libs.errors import Code, MeshError


class BytesWrong(MeshError):
    """Bytes are not what the format has at their place. `at` is the offset from the start of what was read."""

    code = Code.DATA_LOSS
    reason = "LOG_BYTES_WRONG"

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at, self.why = at, why


class BytesContradict(BytesWrong):
    """Bytes agree with themselves, but not with the format or the log: no write that was cut short leaves such."""

    reason = "LOG_BYTES_CONTRADICT"


class Status(IntEnum):
    """What is wrong, by the exit status that says so."""

    SOUND = 0
    TORN = 2
    """The last write was cut short; nothing that was promised is missing."""
    DAMAGED = 3
    ROLLED_BACK = 4
    """The log is shorter than a size that was promised, or is not what was promised."""
    UNPROVEN = 5
    """A signature, the key under it, or policy does not bear something out."""
    DIVERGED = 6
    """The log's own signature stands under two histories."""
    GAP = 7
    """A number of an issuer or a tenant is missing, or stands for two entries."""


_MILDEST_FIRST = (
    Status.SOUND,
    Status.TORN,
    Status.GAP,
    Status.UNPROVEN,
    Status.ROLLED_BACK,
    Status.DAMAGED,
    Status.DIVERGED,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    status: Status
    file: str
    offset: int | None
    """In the file; None where the finding is about no byte of it."""
    what: str


@dataclass(slots=True)
class Findings:
    """All of it, in the order in which it was found."""

    wrong: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What a reader should know, though nothing is wrong with it."""

    def add(self, status: Status, file: str, offset: int | None, what: str) -> None:
        self.wrong.append(Finding(status, file, offset, what))

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def has(self, status: Status) -> bool:
        return any(each.status is status for each in self.wrong)

    @property
    def worst(self) -> Status:
        """The exit status: what is proven against the log's keeper is worse than what a disk can do by itself."""
        return max((each.status for each in self.wrong), key=_MILDEST_FIRST.index, default=Status.SOUND)
