"""What a fault was found to do: how much was tried, and every promise that did not hold."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Outcome:
    """Counts by what was counted; nothing is wrong in one that holds."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return bool(self.counts) and not self.wrong

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)

    def add(self, other: Outcome) -> None:
        self.counts.update(other.counts)
        self.wrong += other.wrong

    def report(self) -> str:
        told = ", ".join(f"{count:,} {what}" for what, count in self.counts.items()) or "nothing was tried"
        return "\n".join([told, *(f"  {each}" for each in self.wrong)])

    def members(self) -> dict[str, Any]:
        return {"counts": dict(self.counts), "wrong": self.wrong}

    @classmethod
    def parse(cls, members: Mapping[str, Any]) -> Outcome:
        return cls(Counter(members["counts"]), list(members["wrong"]))


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rounds of one fault, in a folder of their own. A round is the same whenever it is run."""

    rounds: range
    seed: int
    folder: Path

    def in_any_order(self, places: Sequence[T]) -> list[T]:
        """Places in the order in which rounds try them: all of them, before any comes again."""
        shuffled = list(places)
        random.Random(self.seed).shuffle(shuffled)  # noqa: S311 - an order, not a secret
        return shuffled

    def chance(self, number: int) -> random.Random:
        """What one round leaves to chance."""
        return random.Random(f"{self.seed}/{number}")  # noqa: S311 - a choice of faults, not a secret
