"""Take any check away, and exactly the bad evidence that rests on it is no longer refused for its reason.

Each mutant is tried on the rows that reach the check: a statement that a row never comes to cannot change what becomes
of it. `python -m tests.mutation` tries every row on every mutant, and weaker comparisons as well.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mutation.changes import entry_mutants
from tests.mutation.exempt import EXEMPT
from tests.mutation.run import Result, run, site_mutants
from tests.mutation.sites import CONVERTED, JUDGING, OUTSIDE, PARSING, Site, sites, sources
from tests.mutation.trial import Baseline, baselines
from tests.unit.libs.tee.bad_evidence.row import Benches
from tests.unit.libs.tee.bad_evidence.table import TABLE

# One row is a certificate with the serial number 0, of which the library still only warns.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number")


@pytest.fixture(scope="module")
def found() -> list[Site]:
    return sites(list(sources().values()))


@pytest.fixture(scope="module")
def rows(found: list[Site]) -> list[Baseline]:
    return baselines(TABLE, Benches(), sources(), found)


@pytest.fixture(scope="module")
def results(found: list[Site], rows: list[Baseline]) -> list[Result]:
    mutants = [*site_mutants(found, sources(), rows), *entry_mutants(rows)]
    return [run(mutant, mutant.reaching) for mutant in mutants]


def test_every_row_is_refused_as_the_table_says(rows: list[Baseline]) -> None:
    assert [row.row.name for row in rows if row.outcome != row.row.reason] == []


def test_every_check_has_a_row_that_rests_on_it(results: list[Result]) -> None:
    assert [each.name for each in results if not each.rows and each.name not in EXEMPT] == []


def test_exactly_the_rows_of_a_check_notice_that_it_is_gone(results: list[Result]) -> None:
    assert {each.name: each.survived for each in results if each.survived and each.name not in EXEMPT} == {}
    assert {each.name: each.strayed for each in results if each.strayed} == {}


def test_no_check_is_excused_without_need(results: list[Result]) -> None:
    assert EXEMPT.keys() == {each.name for each in results if not each.is_killed}


def test_no_judgement_is_excused(found: list[Site]) -> None:
    assert [site.name for site in found if site.group == JUDGING and site.name in EXEMPT] == []


def test_most_judgements_stand_alone_between_bad_evidence_and_a_verdict(results: list[Result]) -> None:
    """Many rows are accepted once their check is gone: nothing else was wrong with them."""
    judging = [each for each in results if each.group == JUDGING]
    assert sum(each.accepted > 0 for each in judging) > len(judging) * 2 // 3


def test_the_run_sees_the_whole_library(found: list[Site]) -> None:
    groups = Counter(site.group for site in found)
    assert groups[JUDGING] > 120
    assert groups[PARSING] > 60
    assert groups[CONVERTED] > 60
    assert len({site.module for site in found}) > 20
    assert all(OUTSIDE.values())


def test_names_of_checks_are_told_apart(found: list[Site]) -> None:
    assert [name for name, count in Counter(site.name for site in found).items() if count > 1] == []
