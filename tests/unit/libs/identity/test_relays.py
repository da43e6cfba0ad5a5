"""Every relay of the table is refused for its reason; take a check away, and the relays that rest on it get further.

Each relay is tried on a mesh of its own, with every check in place, and again without each check that it shows: by
default one relay for each, all of them by `python -m tests.mutation --relays`. A relay that no error of a check
reached is not tried without it: a statement that never refused cannot be missed.
"""

from __future__ import annotations

import pkgutil
import time
from collections import Counter

import pytest

import libs.identity
from services.devtee.machine import Machine
from tests.mutation.changes import Weakening
from tests.mutation.identity import Check, Trial, checks, trial, undisturbed, unnoticed
from tests.mutation.identity_places import EXEMPT, MODULES, OUTSIDE
from tests.mutation.loosened import LOOSENED
from tests.unit.libs.identity.relays.row import Row
from tests.unit.libs.identity.relays.table import TABLE

CHECKS = checks()
_TRIED = 1

# Two hundred meshes are started.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.create(int(time.time()))


@pytest.fixture(scope="module")
def trials(machine: Machine) -> dict[str, Trial]:
    return {row.name: trial(row, machine, CHECKS) for row in TABLE}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_relay_is_refused_for_its_reason(trials: dict[str, Trial], row: Row) -> None:
    assert trials[row.name].outcome == row.reason


@pytest.mark.parametrize("check", [check for check in CHECKS if check.name not in EXEMPT], ids=lambda check: check.name)
def test_without_a_check_its_relays_are_told_something_else(
    machine: Machine, trials: dict[str, Trial], check: Check
) -> None:
    assert unnoticed(check, list(trials.values()), machine, _TRIED) == []


@pytest.mark.parametrize(("weakening", "names"), LOOSENED, ids=[each.name for each, _ in LOOSENED])
def test_what_a_proof_is_held_against_does_not_come_from_the_proof(
    machine: Machine, trials: dict[str, Trial], weakening: Weakening, names: tuple[str, ...]
) -> None:
    assert undisturbed(weakening, [trials[name] for name in names], machine) == []


def test_relays_are_told_apart_by_what_is_presented() -> None:
    assert [name for name, count in Counter(row.name for row in TABLE).items() if count > 1] == []


def test_the_table_is_about_many_checks() -> None:
    assert len(TABLE) >= 150
    assert len({row.reason for row in TABLE}) >= 50


def test_every_module_of_identity_is_attacked_or_excused() -> None:
    found = {each.name for each in pkgutil.iter_modules(libs.identity.__path__, "libs.identity.")}
    assert found == {name for name in {*MODULES, *OUTSIDE} if name.startswith("libs.identity.")}
    assert not MODULES.keys() & OUTSIDE.keys()


def test_no_check_is_excused_that_is_not_there() -> None:
    assert EXEMPT.keys() <= {check.name for check in CHECKS}
    assert all(EXEMPT.values())


def test_names_of_checks_are_told_apart() -> None:
    assert [name for name, count in Counter(check.name for check in CHECKS).items() if count > 1] == []
