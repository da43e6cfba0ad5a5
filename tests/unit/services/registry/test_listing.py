"""Pages: every item once, whatever comes or goes meanwhile."""

from __future__ import annotations

import pytest

from services.registry.listing import PageTokenMalformed, page_of_providers, page_of_sessions
from services.registry.providers import Provider
from services.registry.summaries import Summary

NAMES = [f"spiffe://mesh.test/node/{name}" for name in "abcde"]
PROVIDERS = [Provider(name, "h:1", (), "", "", "", 1) for name in NAMES]


def summary(number: int, at: int) -> Summary:
    return Summary(f"{number:064x}", NAMES[0], "", (), at, at + 1, 1)


# Two of the same second, so that time alone does not tell them apart.
SUMMARIES = [summary(5, 30), summary(3, 20), summary(4, 20), summary(1, 10)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_pages_of_providers_hold_each_once(size: int) -> None:
    seen: list[Provider] = []
    token = ""
    while True:
        page, token = page_of_providers(PROVIDERS, token, size)
        seen += page
        assert len(page) <= size
        if not token:
            break
    assert seen == PROVIDERS


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_pages_of_sessions_hold_each_once(size: int) -> None:
    seen: list[Summary] = []
    token = ""
    while True:
        page, token = page_of_sessions(SUMMARIES, token, size)
        seen += page
        assert len(page) <= size
        if not token:
            break
    assert seen == SUMMARIES


def test_what_comes_or_goes_shifts_no_page() -> None:
    first, token = page_of_sessions(SUMMARIES, "", 2)
    second, _ = page_of_sessions([summary(9, 40), *SUMMARIES[2:]], token, 2)
    assert [*first, *second] == SUMMARIES
    _, token = page_of_providers(PROVIDERS, "", 2)
    assert page_of_providers([*PROVIDERS[3:]], token, 2)[0] == PROVIDERS[3:]


@pytest.mark.parametrize("token", ["next", "1.2", "-1." + "00" * 32, "1." + "zz" * 32, f"{10**16}." + "00" * 32])
def test_what_is_no_token_of_sessions_is_refused(token: str) -> None:
    with pytest.raises(PageTokenMalformed):
        page_of_sessions(SUMMARIES, token, 2)


def test_a_page_that_is_too_large_is_refused() -> None:
    for pages in (lambda size: page_of_sessions([], "", size), lambda size: page_of_providers([], "", size)):
        assert pages(1000) == ([], "")
        with pytest.raises(PageTokenMalformed):
            pages(1001)
