"""It is responsible for whom a reader demands to have cosigned a tree head: witnesses by their keys, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.transparency.cosignature import CosignerKey, verify_quorum


class WitnessesTooFew(MeshError):
    """More cosignatures are asked for than witnesses are named."""

    code = Code.INVALID_ARGUMENT
    reason = "WITNESSES_TOO_FEW"


@dataclass(frozen=True, slots=True)
class Quorum:
    """Of these witnesses so many. Raises `WitnessesTooFew` where there are not as many."""

    keys: tuple[CosignerKey, ...] = ()
    """A witness may have several, and counts once."""
    needed: int = 0

    def __post_init__(self) -> None:
        witnesses = len({key.name for key in self.keys})
        if not 0 <= self.needed <= witnesses:
            raise WitnessesTooFew(f"{self.needed} cosignatures cannot be had of {witnesses} witnesses")

    @classmethod
    def of(cls, keys: Sequence[str], needed: int | None) -> Quorum:
        """Return a quorum of witnesses by their keys' text form, of all of them where no number is said.

        Raises `NoteMalformed` or `WitnessesTooFew`.
        """
        parsed = tuple(CosignerKey.parse(text) for text in keys)
        return cls(parsed, len({key.name for key in parsed}) if needed is None else needed)

    def verify(self, note: bytes) -> tuple[str, ...]:
        """Return which of them cosigned a tree head. Raises `QuorumNotReached`, and what a malformed note raises."""
        return verify_quorum(note, self.keys, self.needed)


NOBODY = Quorum()
"""Demands nothing."""
