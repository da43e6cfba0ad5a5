"""What a life tells of itself, at once: what it promised, and what it met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.faults.ledger.disk import Met, SyncedAgain
from tests.faults.ledger.recording import Change


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """An entry IS durable, says the ledger."""

    index: int
    entry_id: bytes
    leaf_hash: bytes


@dataclass(frozen=True, slots=True)
class Signed:
    """A tree was signed and released."""

    note: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """A generation of the keyring IS durable."""

    generation: int


@dataclass(frozen=True, slots=True)
class Ended:
    """It came to its end, after so many steps."""

    steps: int
    writes: tuple[int, ...]
    """Which of them wrote bytes."""


Told = Acknowledged | Signed | Kept | Ended | Met | SyncedAgain | Change
Tell = Callable[[Told], None]


@dataclass(frozen=True, slots=True)
class Lived:
    """What came of a life."""

    status: int
    """Exit status; negative for a signal."""
    told: tuple[Told, ...]

    @property
    def steps(self) -> int:
        """How many it took; 0 where it did not come to its end."""
        return next((each.steps for each in self.told if isinstance(each, Ended)), 0)

    @property
    def writes(self) -> Sequence[int]:
        return next((each.writes for each in self.told if isinstance(each, Ended)), ())

    def acknowledged(self) -> list[Acknowledged]:
        return [each for each in self.told if isinstance(each, Acknowledged)]

    def notes(self) -> list[bytes]:
        return [each.note for each in self.told if isinstance(each, Signed)]

    def generation(self) -> int:
        return max((each.generation for each in self.told if isinstance(each, Kept)), default=0)
