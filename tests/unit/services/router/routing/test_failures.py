"""Whose failures a node's are: its own whoever asks, or one tenant's alone."""

from __future__ import annotations

import pytest

from services.router.routing.failures import Failures


def of(*tenants: str | None) -> Failures:
    """So many in a row; None is one of the node's own."""
    failures = Failures()
    for tenant in tenants:
        if tenant is None:
            failures.count()
        else:
            failures.count_answer(tenant)
    return failures


@pytest.mark.parametrize("enough", [1, 2, 3, 5])
def test_those_without_an_answer_are_the_nodes(enough: int) -> None:
    assert not of(*[None] * (enough - 1)).are_the_nodes(enough)
    assert of(*[None] * enough).are_the_nodes(enough)


@pytest.mark.parametrize("enough", [2, 3, 5, 100])
def test_answers_that_fail_for_one_tenant_never_are(enough: int) -> None:
    failures = of(*["a"] * 1000)
    assert not failures.are_the_nodes(enough)
    assert (failures.answers_of("a"), failures.answers_of("b")) == (1000, 0)


@pytest.mark.parametrize(
    ("tenants", "are"),
    [
        ("aaab", False),
        ("aaabb", True),
        ("aabb", False),
        ("aaaaaaaab", False),
        ("abcde", True),
        ("abcd", False),
    ],
)
def test_those_of_several_are(tenants: str, are: bool) -> None:
    assert of(*tenants).are_the_nodes(5) is are


def test_both_kinds_count_together() -> None:
    assert of("a", "a", "a", "a", None, None).are_the_nodes(5)
    assert not of("a", "a", "a", "a", None).are_the_nodes(5)


def test_what_is_forgotten_counts_no_more() -> None:
    failures = of("a", "b", "c", None, None)
    failures.forget()
    assert not failures.are_the_nodes(1)
    assert failures.answers_of("a") == 0
