"""Runs the whole table of relays on every mutant of identity and keys: `python -m tests.mutation --relays`.

Each mutant is tried on all rows that rest on its check. A row through which no error of the check passed is not tried:
what never refused cannot be missed.
"""

from __future__ import annotations

import logging
import time

import structlog
from rich.console import Console

from services.devtee.machine import Machine
from tests.mutation.identity import checks, trial, undisturbed, unnoticed
from tests.mutation.identity_places import EXEMPT
from tests.mutation.loosened import LOOSENED
from tests.unit.libs.identity.relays.table import TABLE


def run_relays(console: Console) -> bool:
    """Return whether every mutant was noticed, and none excused that need not be."""
    # What the members of many meshes say of themselves, and of bugs that are none.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    machine, every = Machine.create(int(time.time())), checks()
    trials = {row.name: trial(row, machine, every) for row in TABLE}
    faults = [f"not refused as the table says: {name}" for name, row in trials.items() if row.outcome != row.row.reason]
    for check in every:
        with console.status(check.name):
            told_the_same = unnoticed(check, list(trials.values()), machine)
        if told_the_same and check.name not in EXEMPT:
            faults.append(f"not noticed: {check.name}: {', '.join(told_the_same)}")
        if not told_the_same and check.name in EXEMPT:
            faults.append(f"excused, and need not be: {check.name}")
    for weakening, names in LOOSENED:
        with console.status(weakening.name):
            told_the_same = undisturbed(weakening, [trials[name] for name in names], machine)
        faults += [f"not noticed: {weakening.name}: {name}" for name in told_the_same]
    for fault in faults:
        console.print(fault, markup=False, soft_wrap=True)
    console.print(f"{len(trials)} relays, {len(every) + len(LOOSENED)} mutants, {len(EXEMPT)} excused")
    return not faults
