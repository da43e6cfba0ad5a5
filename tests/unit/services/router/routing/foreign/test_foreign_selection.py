"""Which foreign provider serves: a verified one before any other, an unverified one only whom policy names."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from libs.aci.endpoints import CHAT, MESSAGES
from libs.policy.constraints import TenantConstraints
from services.router.errors import TenantConstraintsUnmet
from services.router.prompt import Constraints
from services.router.routing.foreign.selection import ForeignCandidate, Wanted, select_foreign

NOW = 1000.0
TENANT = "ab" * 16
VERIFIED = ForeignCandidate("foreign/a", {"m": "n"}, {CHAT}, "aa" * 32, NOW + 1, frozenset(), NOW - 60, "tdx")
BEST_EFFORT = ForeignCandidate("foreign/z", {"m": "n"}, {CHAT}, None, NOW + 1, frozenset({TENANT}))


def pick(*candidates: ForeignCandidate, constraints: Constraints | None = None, **changes: Any) -> str | None:
    asked: dict[str, Any] = {
        "model": "m",
        "endpoint": CHAT,
        "tenant_id": TENANT,
        "tenant": TenantConstraints(verified_only=False),
        "now": NOW,
        "choice": random.Random(1),  # noqa: S311 - a seed makes the test repeat
        "in_flight": {},
        "excluded": (),
        **changes,
    }
    of_request = {name: asked.pop(name) for name in ("model", "endpoint", "tenant_id", "tenant")}
    return select_foreign(candidates, Wanted(constraints=constraints or Constraints(), **of_request), **asked)


def test_a_verified_provider_goes_before_one_that_is_not_however_busy() -> None:
    assert pick(BEST_EFFORT, VERIFIED, in_flight={"foreign/a": 100}) == "foreign/a"


def test_the_least_busy_of_the_verified_is_chosen() -> None:
    other = replace(VERIFIED, name="foreign/b")
    assert pick(VERIFIED, other, in_flight={"foreign/a": 1}) == "foreign/b"
    assert pick(VERIFIED, other, in_flight={"foreign/b": 1}) == "foreign/a"


def test_an_unverified_provider_serves_a_tenant_whom_policy_names() -> None:
    assert pick(BEST_EFFORT) == "foreign/z"


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant_id": "cd" * 16},
        {"tenant": TenantConstraints()},
        {"constraints": Constraints(verified=True)},
        {"constraints": Constraints(verified=True, session_ids=frozenset({"aa" * 32}))},
        {"model": "other"},
        {"now": NOW + 1},
        {"excluded": {"foreign/z"}},
    ],
    ids=["another tenant", "verified only", "verified", "pinned", "another model", "ended", "tried"],
)
def test_an_unverified_provider_serves_nothing_else(changes: dict[str, Any]) -> None:
    assert pick(BEST_EFFORT, **changes) is None


@pytest.mark.parametrize(
    ("changes", "served"),
    [
        ({"constraints": Constraints(verified=True)}, True),
        ({"constraints": Constraints(verified=True, session_ids=frozenset({"aa" * 32}))}, True),
        ({"constraints": Constraints(verified=True, session_ids=frozenset({"bb" * 32}))}, False),
        ({"tenant_id": "cd" * 16}, True),
        ({"model": "other"}, False),
        ({"now": NOW + 1}, False),
        ({"excluded": {"foreign/a"}}, False),
    ],
    ids=["verified", "pinned", "pinned otherwise", "any tenant", "another model", "ended", "tried"],
)
def test_a_verified_provider_serves_what_a_node_may(changes: dict[str, Any], served: bool) -> None:
    assert (pick(VERIFIED, **changes) == "foreign/a") is served


@pytest.mark.parametrize(
    ("demand", "unmet"),
    [
        ({"regions": frozenset({"eu"})}, "regions"),
        ({"tee_types": frozenset({"sev-snp"})}, "hardware.tee_types"),
        ({"gpu_required": True}, "hardware.gpu_required"),
        ({"models": {"m": frozenset({"aa" * 32})}}, "models"),
        ({"max_evidence_age_seconds": 59}, "max_evidence_age_seconds"),
    ],
    ids=["region", "technology", "gpu", "weights", "age"],
)
def test_what_policy_demands_for_the_tenant_and_a_provider_does_not_show_is_refused(
    demand: dict[str, Any], unmet: str
) -> None:
    for candidate in (VERIFIED, BEST_EFFORT):
        with pytest.raises(TenantConstraintsUnmet, match=unmet):
            pick(candidate, tenant=TenantConstraints(verified_only=False, **demand))


def test_of_a_pinned_session_only_that_it_cannot_serve_is_said() -> None:
    tenant = TenantConstraints(regions=frozenset({"eu"}))
    pinned = Constraints(verified=True, session_ids=frozenset({"aa" * 32}))
    assert pick(VERIFIED, tenant=tenant, constraints=pinned) is None


def test_what_a_tried_provider_shows_is_not_said_to_be_missing() -> None:
    tenant = TenantConstraints(tee_types=frozenset({"tdx"}))
    other = replace(VERIFIED, name="foreign/b", tee_type="sev-snp")
    assert pick(VERIFIED, other, tenant=tenant, excluded={"foreign/a"}) is None
    with pytest.raises(TenantConstraintsUnmet):
        pick(VERIFIED, tenant=TenantConstraints(gpu_required=True), excluded={"foreign/a"})


def test_a_provider_that_shows_what_policy_demands_for_the_tenant_serves() -> None:
    tenant = TenantConstraints(tee_types=frozenset({"tdx"}), max_evidence_age_seconds=60)
    assert pick(VERIFIED, tenant=tenant) == "foreign/a"


def test_a_provider_is_asked_only_where_its_kind_answers() -> None:
    assert pick(VERIFIED, BEST_EFFORT, endpoint=MESSAGES) is None
    other = replace(BEST_EFFORT, endpoints={CHAT, MESSAGES})
    assert pick(VERIFIED, other, endpoint=MESSAGES) == "foreign/z"
