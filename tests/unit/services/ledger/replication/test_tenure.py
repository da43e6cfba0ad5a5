"""A writer is the only one for as long as a majority, with itself, was asked and has answered."""

from __future__ import annotations

import pytest

from services.ledger.replication.tenure import Tenure

from .members import Clock

NAMES = ("two", "three", "four", "five")


@pytest.mark.parametrize(("answering", "lasts"), [((), 0), (("two",), 0), (("two", "five"), 4), (NAMES, 4)])
def test_it_lasts_as_long_as_a_majority_answers(answering: tuple[str, ...], lasts: float) -> None:
    clock = Clock()
    tenure = Tenure(NAMES, 3, 10, clock)
    clock.now += 4
    for name in answering:
        tenure.answered(name, tenure.now())
    clock.now += 6
    assert tenure.left == lasts
    assert [tenure.answers(name) for name in NAMES] == [name in answering for name in NAMES]


def test_it_counts_from_when_a_member_was_asked_and_not_from_its_answer() -> None:
    clock = Clock()
    tenure = Tenure(("two", "three"), 2, 10, clock)
    asked_at = tenure.now()
    clock.now += 7
    tenure.answered("two", asked_at)
    assert (tenure.heard_at, tenure.left) == (asked_at, 3)
