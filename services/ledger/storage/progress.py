"""It is responsible for which numbers of an issuer are logged: what deduplication goes by."""

from __future__ import annotations


class Progress:
    """The numbers of one issuer. Arrival order is free, so numbers may be ahead of a hole."""

    __slots__ = ("_ahead", "contiguous")

    def __init__(self) -> None:
        self.contiguous = 0
        # Most issuers never have a hole, and a set for each of them would cost more than all the rest.
        self._ahead: set[int] | None = None

    @property
    def highest(self) -> int:
        return max(self._ahead) if self._ahead else self.contiguous

    def has(self, issuer_seq: int) -> bool:
        return 1 <= issuer_seq <= self.contiguous or (self._ahead is not None and issuer_seq in self._ahead)

    def add(self, issuer_seq: int) -> None:
        self.add_run(issuer_seq, issuer_seq)

    def add_run(self, low: int, high: int) -> None:
        """Add the numbers from `low` to `high`."""
        if low <= self.contiguous + 1:
            self.contiguous = max(self.contiguous, high)
        else:
            self._ahead = self._ahead or set()
            self._ahead.update(range(low, high + 1))
        if self._ahead:
            self._close_up(self._ahead)

    def missing(self, limit: int) -> list[int]:
        """Return the first numbers, at most `limit`, that are not logged though a later one is."""
        found: list[int] = []
        previous = self.contiguous
        for number in sorted(self._ahead or ()):
            found.extend(range(previous + 1, min(number, previous + 1 + limit - len(found))))
            if len(found) >= limit:
                break
            previous = number
        return found

    def _close_up(self, ahead: set[int]) -> None:
        while self.contiguous + 1 in ahead:
            self.contiguous += 1
            ahead.remove(self.contiguous)
        if not ahead:
            self._ahead = None
