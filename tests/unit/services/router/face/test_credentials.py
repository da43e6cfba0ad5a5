"""Whose key a request shows, by whichever header: never a guess among two."""

from __future__ import annotations

import pytest

from services.router.errors import InvalidRequest
from services.router.face.arrivals import Fields
from services.router.face.credentials import authorization


def shown(*pairs: tuple[str, str]) -> str | None:
    return authorization(Fields(pairs))


def test_either_header_shows_the_key() -> None:
    assert shown(("authorization", "Bearer sk-1")) == "Bearer sk-1"
    assert shown(("x-api-key", " sk-1 ")) == "Bearer sk-1"
    assert shown() is None


def test_both_may_show_the_same() -> None:
    assert shown(("authorization", "bearer sk-1"), ("x-api-key", "sk-1")) == "Bearer sk-1"


def test_an_empty_header_shows_nothing_and_hides_nothing() -> None:
    assert shown(("x-api-key", " ")) is None
    assert shown(("authorization", "Bearer sk-1"), ("x-api-key", "")) == "Bearer sk-1"


@pytest.mark.parametrize("other", ["Bearer sk-2", "Bearer", "Basic sk-1", ""])
def test_two_that_differ_are_refused(other: str) -> None:
    with pytest.raises(InvalidRequest, match="different API keys"):
        shown(("authorization", other), ("x-api-key", "sk-1"))


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_a_header_that_comes_twice_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="more than once"):
        shown((name, "Bearer sk-1"), (name, "Bearer sk-1"))
