"""It is responsible for what the log says of pruning: below which entry segments may be bare, and which entry says so.

A bare segment that no entry of the log allows is damage: whoever has the disk could otherwise take bodies out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from libs.events.pruning import parse_prune
from libs.events.records import SALT_SIZE, parse_entry
from libs.transparency.leaf import Kind
from services.ledger.storage import segments
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.index import Index
from services.ledger.storage.reading import LogReader


@dataclass(frozen=True, slots=True)
class Prunings:
    """What was allowed, in the order of the log; each one goes further than the one before."""

    limits: tuple[int, ...] = ()
    """Bodies of entries before it may be gone."""
    entries: tuple[int, ...] = ()
    """Index of the entry that says so."""

    @property
    def limit(self) -> int:
        """Before which entry bodies may be gone."""
        return max(self.limits, default=0)

    def covering(self, index: int) -> int:
        """Return the first entry that allows the body of an entry to be gone, which one MUST."""
        return self.entries[bisect_right(self.limits, index)]

    def entry_for(self, limit: int) -> int | None:
        """Return the first entry that allows bodies before a limit to be gone."""
        return self.covering(limit - 1) if limit <= self.limit else None

    def require(self, bare: Mapping[int, int]) -> None:
        """Raise `LogDamaged` for a bare segment, named by its first leaf and its end, that no entry allows."""
        for first, end in bare.items():
            if end > self.limit:
                raise LogDamaged(segments.file_name(first), 0, "bodies are gone from it, and no entry allows that")


def read_prunings(index: Index, reader: LogReader) -> Prunings:
    """Return what the log says. Raises `LogDamaged`, and `PruneMalformed` for what admission never let in."""
    return _rising((at, _limit(reader, at)) for at in index.of_kinds((Kind.PRUNE,)))


def _limit(reader: LogReader, at: int) -> int:
    # What an entry cannot know of are entries after it, whatever it says.
    return min(parse_prune(parse_entry(reader.entry(at).row.body[SALT_SIZE:]).body).min_index, at)


def _rising(said: Iterable[tuple[int, int]]) -> Prunings:
    limits: list[int] = []
    entries: list[int] = []
    for at, limit in said:
        if limit > (limits[-1] if limits else 0):
            limits.append(limit)
            entries.append(at)
    return Prunings(tuple(limits), tuple(entries))
