"""The mutation run: each mutant, the rows that must notice it, and those that did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tests.mutation.sites import Site, Source, without
from tests.mutation.trial import ACCEPTED, Baseline, outcome


@dataclass(frozen=True, slots=True)
class Mutant:
    """A check that is taken away, with the rows that rest on it and those that taking it away may change."""

    name: str
    group: str
    apply: Callable[[], AbstractContextManager[None]]
    # Where nothing says which rows rest on it, none: then any will do that changes.
    decisive: Sequence[Baseline]
    reaching: Sequence[Baseline]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the rows of one mutant; rows by their names."""

    name: str
    group: str
    # What the rows that rest on the check are told while it is there.
    reasons: tuple[str, ...]
    rows: tuple[str, ...]
    # Of these, the ones that are told the same without the check.
    survived: tuple[str, ...]
    # Rows that changed though they never reached the check.
    strayed: tuple[str, ...]
    # How many of the rows were accepted without the check: nothing else is wrong with them.
    accepted: int

    @property
    def is_killed(self) -> bool:
        return bool(self.rows) and not self.survived and not self.strayed


def site_mutants(sites: Iterable[Site], sources: Mapping[str, Source], rows: Sequence[Baseline]) -> list[Mutant]:
    return [
        Mutant(
            name=site.name,
            group=site.group,
            apply=lambda site=site: without(sources[site.module], site),  # type: ignore[misc]
            decisive=[row for row in rows if site in row.decisive],
            reaching=[row for row in rows if site in row.reached],
        )
        for site in sites
    ]


def run(mutant: Mutant, rows: Sequence[Baseline]) -> Result:
    """Try these rows on the mutant."""
    with mutant.apply():
        outcomes = {row.row.name: outcome(row.present) for row in rows}
    before = {row.row.name: row.outcome for row in rows}
    changed = {name for name, after in outcomes.items() if after != before[name]}
    resting = tuple(row.row.name for row in mutant.decisive) or tuple(sorted(changed))
    return Result(
        name=mutant.name,
        group=mutant.group,
        reasons=tuple(sorted({before[name] for name in resting})),
        rows=resting,
        survived=tuple(name for name in resting if name not in changed),
        strayed=tuple(sorted(changed - {row.row.name for row in mutant.reaching})),
        accepted=sum(outcomes[name].startswith(ACCEPTED) for name in resting),
    )
