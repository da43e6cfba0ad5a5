"""It is responsible for how long nobody else can be the writer: whoever answers this one gives no other a vote as long.

It counts from when a member was asked, before it could answer, by clocks that run alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Tenure:
    """One writer's time, as long as a majority answers it."""

    def __init__(self, others: Iterable[str], majority: int, seconds: float, clock: Callable[[], float]) -> None:
        """`majority` counts the writer too; `seconds` is for how long whoever answers gives no other a vote."""
        self._majority = majority
        self._seconds = seconds
        self._clock = clock
        self._asked_at = dict.fromkeys(others, clock())

    def now(self) -> float:
        return self._clock()

    def answered(self, member: str, asked_at: float) -> None:
        """Take in that a member has answered what it was asked then."""
        self._asked_at[member] = asked_at

    def answers(self, member: str) -> bool:
        """Whether a member answered lately."""
        return self._clock() < self._asked_at[member] + self._seconds

    @property
    def heard_at(self) -> float:
        """When the last was asked that a majority, with the writer, has answered since."""
        return sorted(self._asked_at.values(), reverse=True)[self._majority - 2]

    @property
    def left(self) -> float:
        """How many seconds it lasts if nobody answers any more; none or less where it is over."""
        return self.heard_at + self._seconds - self._clock()
