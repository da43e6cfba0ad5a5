"""Which units of a long run are done, and by which code, in a file that outlives it: so it can be taken up again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.faults.ledger.outcome import Outcome
from tests.faults.ledger.table import FAULTS, Fault, Part


@dataclass(frozen=True, slots=True)
class Unit:
    """What is run at once: some rounds of one part of a fault, or its tests elsewhere where there is no part."""

    fault: Fault
    part: Part | None
    rounds: range

    @property
    def name(self) -> str:
        what = "tests elsewhere" if self.part is None else self.part.name
        return f"{self.fault.number}/{what}/{self.rounds.start}-{self.rounds.stop}"


def units_of(numbers: frozenset[int], rounds: int | None) -> list[Unit]:
    """Everything there is to do for these faults, with so many rounds of each part, or as many as it has at length."""
    units = []
    for fault in FAULTS:
        if fault.number not in numbers:
            continue
        for part in fault.parts:
            end = part.rounds if rounds is None else rounds
            starts = range(0, end, part.batch)
            units += [Unit(fault, part, range(start, min(start + part.batch, end))) for start in starts]
        if fault.tests:
            units.append(Unit(fault, None, range(0)))
    return units


class Progress:
    """The file: one line of JSON for each unit that came to its end, durable before the next one begins."""

    def __init__(self, path: Path, seed: int, code: str) -> None:
        """`code` names the sources that run now: what others did is done again."""
        self._path = path
        self._run = {"seed": seed, "code": code}
        self.done: dict[str, Outcome] = {}
        self.begun_again = 0
        """So many units were done by other code."""
        others: set[str] = set()
        if path.exists():
            *lines, torn = path.read_bytes().split(b"\n")
            os.truncate(path, path.stat().st_size - len(torn))
            for line in lines:
                members = json.loads(line)
                if {name: members.get(name) for name in self._run} == self._run:
                    self.done[members["unit"]] = Outcome.parse(members)
                elif members["seed"] == seed:
                    others.add(members["unit"])
        self.begun_again = len(others - self.done.keys())

    def add(self, unit: Unit, outcome: Outcome) -> None:
        self.done[unit.name] = outcome
        line = json.dumps({"unit": unit.name, **self._run, **outcome.members()})
        with self._path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
