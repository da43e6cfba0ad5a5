"""What a policy says about providers outside the mesh: nobody, unless it is written, and strictly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from libs import jcs
from libs.policy.document import PolicyMalformed, parse
from libs.policy.foreign import ForeignKind
from libs.policy.revoked import Revoked
from libs.tee.measurement import MeasurementSet

Damage = Callable[[dict[str, Any]], object]

TENANT = "ab" * 16


@pytest.fixture
def foreign(draft: dict[str, Any]) -> dict[str, Any]:
    """A policy with one provider of each kind."""
    measurement = draft["roles"]["node"]["measurements"][0]
    draft["foreign_providers"] = [
        {
            "name": "other-mesh",
            "kind": "aci",
            "origin": "https://router.example:8443",
            "models": {"here": "there/model"},
            "measurements": [measurement],
            "subject": "spiffe://other.example/router/a",
            "session_claims": ["gpu_attested"],
        },
        {
            "name": "commercial",
            "kind": "openai",
            "origin": "https://[2001:db8::1]:443",
            "models": {"here": "there"},
            "best_effort": True,
            "tenants": [TENANT],
        },
        {
            "name": "worker",
            "kind": "dstack-vllm-proxy",
            "origin": "https://worker.example",
            "models": {"here": "there"},
            "measurements": [measurement],
            "best_effort": False,
        },
    ]
    return draft


def test_a_policy_without_the_member_lists_nobody(draft: dict[str, Any]) -> None:
    assert parse(jcs.dumps(draft)).foreign_providers == ()


def test_providers_carry_what_the_policy_says(foreign: dict[str, Any]) -> None:
    policy = parse(jcs.dumps(foreign))
    other, commercial, worker = policy.foreign_providers
    assert (other.name, other.kind, other.origin) == ("other-mesh", ForeignKind.ACI, "https://router.example:8443")
    assert (dict(other.models), other.subject) == ({"here": "there/model"}, "spiffe://other.example/router/a")
    assert other.session_claims == frozenset({"gpu_attested"})
    assert other.measurements == policy.roles["node"].measurements
    assert not other.best_effort
    assert commercial.best_effort
    assert not worker.best_effort
    assert worker.tenants == frozenset()
    assert worker.measurements == other.measurements
    assert commercial.tenants == frozenset({TENANT})
    assert commercial.measurements == frozenset()


def test_the_rules_for_a_provider_are_its_measurements_on_machines_that_the_policy_accepts(
    foreign: dict[str, Any],
) -> None:
    policy = parse(jcs.dumps(foreign))
    rules = policy.foreign_rules(policy.foreign_providers[0])
    own = policy.rules("node")
    assert rules.tdx is not None
    assert own.tdx is not None
    assert (rules.tdx.vendor_roots, rules.tdx.tcb, rules.devices) == (own.tdx.vendor_roots, own.tdx.tcb, own.devices)
    assert rules.tdx.measurements == MeasurementSet(policy.foreign_providers[0].measurements)
    assert rules.snp is None


def test_what_is_revoked_is_revoked_for_foreign_providers_too(foreign: dict[str, Any]) -> None:
    revoked = Revoked(compose_hashes=frozenset({"aa" * 32}), devices=frozenset({"dd" * 32}))
    policy = replace(parse(jcs.dumps(foreign)), revoked=revoked)
    rules = policy.foreign_rules(policy.foreign_providers[0])
    assert rules.tdx is not None
    assert rules.tdx.measurements == MeasurementSet(policy.foreign_providers[0].measurements, frozenset({"aa" * 32}))
    assert rules.devices == policy.rules("node").devices


def test_a_provider_without_measurements_is_allowed_nothing(foreign: dict[str, Any]) -> None:
    foreign["foreign_providers"][0]["measurements"] = []
    policy = parse(jcs.dumps(foreign))
    rules = policy.foreign_rules(policy.foreign_providers[0])
    assert rules.tdx is not None
    assert isinstance(rules.tdx.measurements, MeasurementSet)
    assert not rules.tdx.measurements.allowed


def _member(number: int, name: str, value: Any) -> Damage:
    return lambda draft: draft["foreign_providers"][number].__setitem__(name, value)


def _without(number: int, name: str) -> Damage:
    return lambda draft: draft["foreign_providers"][number].pop(name)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda draft: draft.__setitem__("foreign_providers", {}), "foreign_providers must be a list"),
        (_member(1, "name", "other-mesh"), "foreign_providers names the same thing twice"),
        (_member(0, "name", "Other"), "foreign_providers[0].name"),
        (_member(0, "kind", "anything"), "foreign_providers[0].kind"),
        (_member(0, "origin", "http://router.example"), "foreign_providers[0].origin"),
        (_member(0, "origin", "https://router.example/v1"), "foreign_providers[0].origin"),
        (_member(0, "origin", "https://router.example/"), "foreign_providers[0].origin"),
        (_member(0, "origin", "https://me@router.example"), "foreign_providers[0].origin"),
        (_member(0, "origin", "https://Router.example"), "foreign_providers[0].origin"),
        (_member(0, "origin", "https://router.example:65536"), "foreign_providers[0].origin"),
        (_member(0, "origin", "https://router..example"), "foreign_providers[0].origin"),
        (_member(0, "origin", "https://router-.example"), "foreign_providers[0].origin"),
        (_member(0, "origin", f"https://{'a' * 64}.example"), "foreign_providers[0].origin"),
        (_member(0, "origin", f"https://{'a.' * 8}example"), "foreign_providers[0].origin"),
        (_member(0, "origin", "https://[::::]"), "foreign_providers[0].origin has no IPv6 address"),
        (_member(0, "origin", "https://[192.0.2.1]"), "foreign_providers[0].origin has no IPv6 address"),
        (_member(0, "models", {}), "foreign_providers[0].models must not be empty"),
        (_member(0, "models", {"a b": "c"}), "foreign_providers[0].models"),
        (_member(0, "models", {"a": ""}), "foreign_providers[0].models.a"),
        (_without(0, "measurements"), "foreign_providers[0].measurements is missing"),
        (_without(0, "session_claims"), "foreign_providers[0].session_claims is missing"),
        (_member(0, "session_claims", ["anything"]), "foreign_providers[0].session_claims"),
        (_member(0, "best_effort", True), "foreign_providers[0].best_effort is not a known member"),
        (_member(0, "tenants", [TENANT]), "foreign_providers[0].tenants is not a known member"),
        (_without(1, "best_effort"), "foreign_providers[1].best_effort is missing"),
        (_member(1, "best_effort", False), "foreign_providers[1].best_effort must be true"),
        (_without(1, "tenants"), "foreign_providers[1].tenants is missing"),
        (_member(1, "tenants", ["everybody"]), "foreign_providers[1].tenants"),
        (_member(1, "measurements", []), "foreign_providers[1].measurements is not a known member"),
        (_without(2, "best_effort"), "foreign_providers[2].best_effort is missing"),
        (_without(2, "measurements"), "foreign_providers[2].measurements is missing"),
        (_member(2, "best_effort", True), "foreign_providers[2].tenants is missing"),
        (_member(2, "tenants", [TENANT]), "foreign_providers[2].tenants is not a known member"),
        (_member(2, "subject", "a"), "foreign_providers[2].subject is not a known member"),
        (_member(2, "session_claims", []), "foreign_providers[2].session_claims is not a known member"),
        (_member(0, "note", "x"), "foreign_providers[0].note is not a known member"),
    ],
)
def test_what_could_be_misread_is_refused(foreign: dict[str, Any], damage: Damage, named: str) -> None:
    damage(foreign)
    with pytest.raises(PolicyMalformed) as refusal:
        parse(jcs.dumps(foreign))
    assert named in str(refusal.value)
