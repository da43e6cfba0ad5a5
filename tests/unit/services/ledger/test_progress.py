"""Which numbers of an issuer are logged, in whatever order they came."""

from __future__ import annotations

import random

import pytest

from services.ledger.storage.derived import merge
from services.ledger.storage.progress import Progress


@pytest.mark.parametrize("seed", range(20))
def test_progress_knows_exactly_the_numbers_that_came(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - an order, not a secret
    numbers = list(range(1, 60))
    chance.shuffle(numbers)
    came: set[int] = set()
    progress = Progress()
    for number in numbers[:50]:
        progress.add(number)
        came.add(number)
        assert [each for each in range(1, 70) if progress.has(each)] == sorted(came)
        assert progress.highest == max(came)
        assert progress.missing(100) == [each for each in range(1, max(came)) if each not in came]
    assert not progress.has(0)


@pytest.mark.parametrize("seed", range(20))
def test_runs_give_the_same_progress_as_their_numbers(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    numbers = chance.sample(range(1, 80), 40)
    one_by_one, by_runs = Progress(), Progress()
    for number in numbers:
        one_by_one.add(number)
    runs = list(merge((number, number) for number in numbers))
    assert [number for low, high in runs for number in range(low, high + 1)] == sorted(numbers)
    chance.shuffle(runs)
    for low, high in runs:
        by_runs.add_run(low, high)
    assert (by_runs.contiguous, by_runs.highest) == (one_by_one.contiguous, one_by_one.highest)
    assert by_runs.missing(100) == one_by_one.missing(100)
