"""Both tables of the router's promises: every row is proven by a test that is collected, and nothing is left out."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import services.router
from libs.errors import MeshError
from services.router.errors import RouterError
from services.router.exchange.ends import End
from tests.conformance.promises import page
from tests.conformance.promises.reading import text_of
from tests.conformance.promises.receipts import ENDS, NOT_REFUSALS_OF_A_TENANTS_PROMPT, REFUSALS, WITHOUT
from tests.conformance.promises.upstreams import WAYS
from tests.unit.libs.identity.relays.table import TABLE

ROOT = Path(__file__).resolve().parents[2]
UPSTREAMS = [row for _, rows in WAYS for row in rows]
EVERY = [*REFUSALS, *ENDS, *WITHOUT, *UPSTREAMS]
AMENDMENTS = {"not_released", "release_unknown", "ledger_unavailable"}
RELAYS = "unit/libs/identity/test_relays.py::test_a_relay_is_refused_for_its_reason"
COLLECTING_SECONDS = 300.0

pytestmark = pytest.mark.timeout(2 * COLLECTING_SECONDS)


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The ids of all tests in the files that rows name, with their parameters and without."""
    files = sorted({f"tests/{row.test.partition('::')[0]}" for row in EVERY})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    listed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=COLLECTING_SECONDS, env=dict(os.environ), check=False
    )
    assert listed.returncode == 0, listed.stdout[-2000:]
    ids = [line.removeprefix("tests/") for line in listed.stdout.splitlines() if "::" in line]
    return {*ids, *(name.partition("[")[0] for name in ids)}


def test_every_row_is_proven_by_a_test_that_is_collected(collected: set[str]) -> None:
    assert [row.test for row in EVERY if row.test not in collected] == []


def test_no_two_rows_are_one() -> None:
    for rows in (REFUSALS, ENDS, WITHOUT, UPSTREAMS):
        assert [row for row, times in Counter((row.way, row.test) for row in rows).items() if times > 1] == []
    assert len({row.test for row in UPSTREAMS}) == len(UPSTREAMS) >= 30


def every_refusal() -> set[type[MeshError]]:
    """The errors with a reason of the router's modules and of all that they use."""
    for module in pkgutil.walk_packages(services.router.__path__, "services.router."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(error: type[MeshError]) -> Iterator[type[MeshError]]:
        for each in error.__subclasses__():
            yield each
            yield from below(each)

    return {each for each in below(MeshError) if hasattr(each, "reason")}


def every_error() -> set[type[RouterError]]:
    """The router's own."""
    return {
        each for each in every_refusal() if issubclass(each, RouterError) and each.__module__.startswith("services.")
    }


def test_every_refusal_code_of_the_router_has_a_row_or_a_reason_to_have_none() -> None:
    reasons = {each.reason for each in every_error()}
    told = {row.name for row in REFUSALS}
    assert reasons - told - set(NOT_REFUSALS_OF_A_TENANTS_PROMPT) == set()
    assert told - reasons == set()
    assert set(NOT_REFUSALS_OF_A_TENANTS_PROMPT) - reasons == set()
    assert told & set(NOT_REFUSALS_OF_A_TENANTS_PROMPT) == set()


def test_every_way_in_which_an_exchange_ends_has_a_row() -> None:
    told = {row.name for row in ENDS}
    assert {end.value for end in End} - told == set()
    assert told - {end.value for end in End} - AMENDMENTS == set()


def every_name() -> dict[str, set[str]]:
    """How tests may name a reason: as it is, in small letters as receipts have it, by its class or its type."""
    names: dict[str, set[str]] = {}
    for error in every_refusal():
        names.setdefault(error.reason, {error.reason, error.reason.lower()}).add(error.__name__)
        if issubclass(error, RouterError) and hasattr(error, "type"):
            names[error.reason].add(error.type)
    return names


def test_what_a_row_names_is_what_its_test_names() -> None:
    names = every_name()
    rows = [row for row in (*REFUSALS, *WITHOUT, *UPSTREAMS) if not row.test.startswith(RELAYS)]
    unnamed = [row for row in rows if not any(name in text_of(row.test) for name in names.get(row.name, {row.name}))]
    assert unnamed == []


def test_how_a_row_says_that_an_exchange_ends_is_what_its_test_says() -> None:
    """As receipts and amendments have it, or by the code's own name for it."""
    names = {row.name: (f'"{row.name}"', f"{End.__name__}.{row.name.upper()}") for row in ENDS}
    assert [row for row in ENDS if not any(name in text_of(row.test) for name in names[row.name])] == []


def test_what_a_row_about_a_relay_names_is_what_the_relay_is_refused_for() -> None:
    reasons = {f"{RELAYS}[{relay.name}]": relay.reason for relay in TABLE}
    rows = [row for row in UPSTREAMS if row.test.startswith(RELAYS)]
    assert rows
    assert {row.test: row.name for row in rows} == {row.test: reasons[row.test] for row in rows}


def test_what_stops_a_prompt_is_a_name_that_the_code_has() -> None:
    names = {
        node.value
        for folder in ("libs", "services")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert {row.name for row in UPSTREAMS} - names == set()


def test_the_page_has_the_tables_as_they_are() -> None:
    """Made anew by `python -m tests.conformance.promises.page`."""
    text = (ROOT / "docs" / "router.md").read_text()
    assert page.receipts() in text
    assert page.upstreams() in text
