"""It is responsible for issuers' numbers: each from 1 on, each once, none left out, each entry naming the one before.

Arrival order is free, so a number may come after later ones. Only a hole that stays is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

PATIENCE_NS = 60 * 10**9
"""How long a number may be missing, by the log's own times."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Numbers of an issuer that are not in the log, though a later one is, or the issuer's next start names them."""

    issuer: bytes
    first: int
    last: int
    since_ns: int


@dataclass(slots=True)
class _Sequence:
    contiguous: int = 0
    commitment: bytes = bytes(32)
    """Of the entry with number `contiguous`; zeros before the first."""
    ahead: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    """Numbers above a hole: commitment, and when it came."""
    claims: dict[int, bytes] = field(default_factory=dict)
    """What entries say that the commitment of a number is which has not come yet."""
    closed: tuple[int, int] | None = None
    """The last number, by the issuer's next start, and when it was said."""


class Sequences:
    """All issuers' numbers as far as the log was read."""

    def __init__(self) -> None:
        self._of: dict[bytes, _Sequence] = {}

    def __len__(self) -> int:
        return len(self._of)

    def add_run(self, issuer: bytes, numbers: Sequence[int], commitments: Sequence[bytes], wall_ns: int) -> list[int]:
        """Take in one issuer's entries in log order. Returns the numbers that were there before."""
        sequence = self._of.setdefault(issuer, _Sequence())
        # Nearly always: the next numbers, nothing missing.
        if (
            not sequence.ahead
            and not sequence.claims
            and tuple(numbers) == tuple(range(sequence.contiguous + 1, sequence.contiguous + 1 + len(numbers)))
        ):
            sequence.contiguous, sequence.commitment = numbers[-1], commitments[-1]
            return []
        pairs = zip(numbers, commitments, strict=True)
        return [number for number, each in pairs if not _add(sequence, number, each, wall_ns)]

    def names_previous(self, issuer: bytes, number: int, previous: bytes) -> bool:
        """Say whether an entry, not added yet, may name this commitment as that of the number before its own.

        Where that one has not come, the claim is kept: `contradicted` tells what came of it.
        """
        sequence = self._of.setdefault(issuer, _Sequence())
        before = number - 1
        if before == sequence.contiguous:
            return previous == sequence.commitment
        if before in sequence.ahead:
            return previous == sequence.ahead[before][0]
        sequence.claims[before] = previous
        return True

    def close(self, issuer: bytes, last: int, wall_ns: int) -> None:
        """The issuer's next start says that its sequence ended with a number."""
        self._of.setdefault(issuer, _Sequence()).closed = (last, wall_ns)

    def end_of(self, issuer: bytes) -> int | None:
        """Return the last number, where a later start said it."""
        closed = self._of[issuer].closed if issuer in self._of else None
        return None if closed is None else closed[0]

    def contradicted(self) -> Iterator[tuple[bytes, int]]:
        """Yield issuers and numbers whose entry is another than a later one says."""
        for issuer, sequence in self._of.items():
            for number in sequence.claims:
                if number <= sequence.contiguous or number in sequence.ahead:
                    yield issuer, number

    def holes(self) -> Iterator[Hole]:
        """Yield what is missing, by issuer and number."""
        for issuer, sequence in self._of.items():
            below = sequence.contiguous
            numbers = sorted(sequence.ahead)
            times = [sequence.ahead[number][1] for number in numbers]
            for at, number in enumerate(numbers):
                if number > below + 1:
                    yield Hole(issuer, below + 1, number - 1, min(times[at:]))
                below = number
            if sequence.closed is not None and sequence.closed[0] > below:
                yield Hole(issuer, below + 1, *sequence.closed)


def _add(sequence: _Sequence, number: int, commitment: bytes, wall_ns: int) -> bool:
    """Returns False for a number that was there."""
    if number <= sequence.contiguous or number in sequence.ahead:
        return False
    if sequence.claims.get(number) == commitment:
        del sequence.claims[number]
    sequence.ahead[number] = (commitment, wall_ns)
    while sequence.contiguous + 1 in sequence.ahead:
        sequence.contiguous += 1
        sequence.commitment, _ = sequence.ahead.pop(sequence.contiguous)
    return True
