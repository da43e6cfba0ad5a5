"""Every row of the table of bad evidence is refused by exactly its step and for exactly its reason."""

from __future__ import annotations

from collections import Counter

import pytest

from libs.errors import MeshError
from libs.tee.steps import TITLES, Record
from tests.unit.libs.tee.bad_evidence.row import Benches, Row
from tests.unit.libs.tee.bad_evidence.table import TABLE, UNALTERED

# One row is a certificate with the serial number 0, of which the library still only warns.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")


@pytest.fixture(scope="module")
def benches() -> Benches:
    return Benches()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_what_is_wrong_in_one_thing_is_refused_for_it(benches: Benches, row: Row) -> None:
    present = row.make(benches)
    record = Record()
    with pytest.raises(MeshError) as refusal:
        present(record)
    assert refusal.value.reason == row.reason
    refusing = [step.number for step in record.steps if step.refusal is not None]
    assert refusing == ([] if row.step is None else [row.step])


@pytest.mark.parametrize("technology", UNALTERED)
def test_unaltered_evidence_passes_every_step(benches: Benches, technology: str) -> None:
    record = Record()
    assert UNALTERED[technology](benches)(record) is not None
    assert [step.number for step in record.steps] == list(TITLES)
    assert all(step.refusal is None for step in record.steps)


def test_rows_are_told_apart_by_what_is_wrong() -> None:
    assert [name for name, count in Counter(row.name for row in TABLE).items() if count > 1] == []


def test_the_table_is_about_many_checks_and_every_step() -> None:
    assert len({(row.name, row.reason) for row in TABLE}) >= 500
    assert len({row.reason for row in TABLE}) >= 100
    assert {row.step for row in TABLE} == {None, *TITLES}
