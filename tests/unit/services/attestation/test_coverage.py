"""Coverage counts a lease only on an accepted, current verdict about young evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.attestation.coverage import Judged, Uncovered, coverage
from services.attestation.nodes import Listed

NOW = 1_790_000_000


def listed(name: str = "one") -> Listed:
    return Listed(f"spiffe://mesh.test/node/{name}", "127.0.0.1:1", bytes(32), bytes(32))


GOOD = Judged(listed(), None, NOW - 100, NOW + 100, 7)


def of(*judged: Judged) -> Any:
    return coverage(judged, now=NOW, max_age_seconds=100, policy_version=7)


def test_an_accepted_young_lease_is_covered() -> None:
    counted = of(GOOD)
    assert (counted.live_leases, counted.covered, counted.share, counted.uncovered) == (1, 1, 1.0, ())


@pytest.mark.parametrize(
    ("judged", "reason", "age"),
    [
        (Judged(listed(), "DEBUG_TD", NOW - 5), "DEBUG_TD", 5),
        (Judged(listed(), "PEER_UNREACHABLE"), "PEER_UNREACHABLE", None),
        (Judged(listed(), "NOT_APPRAISED_YET"), "NOT_APPRAISED_YET", None),
        (Judged(listed(), None), "NOT_APPRAISED_YET", None),
        (replace(GOOD, issued_at=NOW - 101), "EVIDENCE_TOO_OLD", 101),
        (replace(GOOD, valid_until=NOW - 1), "APPRAISAL_RUN_OUT", 100),
        (replace(GOOD, policy_version=6), "NOT_APPRAISED_UNDER_CURRENT_POLICY", 100),
    ],
)
def test_every_other_lease_is_not_covered_and_says_why(judged: Judged, reason: str, age: int | None) -> None:
    counted = of(judged, replace(GOOD, listed=listed("two")))
    assert counted.uncovered == (Uncovered(judged.listed.spiffe_id, reason, age),)
    assert (counted.live_leases, counted.covered, counted.share) == (2, 1, 0.5)


def test_where_there_is_no_lease_nothing_is_covered() -> None:
    assert (of().live_leases, of().share) == (0, 0.0)


def test_a_clock_that_lags_makes_no_negative_age() -> None:
    assert of(replace(GOOD, issued_at=NOW + 30, reason="DEBUG_TD")).uncovered[0].evidence_age_seconds == 0
