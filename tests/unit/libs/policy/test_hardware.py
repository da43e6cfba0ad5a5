"""What a policy says about machines beyond Intel's: CPU families, a role's own patch levels, AMD SEV-SNP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from libs import jcs
from libs.policy.document import PolicyMalformed, parse
from libs.tee.measurement import MeasurementSet
from libs.tee.rules import AllOf
from libs.tee.snp.report import PlatformFlag, Product, Tcb
from libs.tee.tcb import TcbRule

Damage = Callable[[dict[str, Any]], object]

LEVELS = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
MEASUREMENT = {
    "compose_hash": "0a" * 32,
    "launch_digest": "0b" * 48,
    "family_id": "00" * 16,
    "image_id": "00" * 16,
}


@pytest.fixture
def snp_draft(draft: dict[str, Any]) -> dict[str, Any]:
    """A policy that accepts SEV-SNP nodes beside everything else; the root is a development one."""
    root = draft["vendor_roots"][0]["certificate"]
    draft["vendor_roots"] = [{"name": "arks", "tee_type": "sev-snp", "certificate": root, "development": True}]
    draft["snp"] = {
        "minimum_tcb": {"Milan": dict(LEVELS), "Turin": {**LEVELS, "fmc": 1}},
        "maximum_crl_age_seconds": 86400,
        "minimum_abi_major": 1,
        "minimum_abi_minor": 55,
        "allow_smt": True,
        "require_single_socket": False,
        "required_platform": ["ALIAS_CHECK_COMPLETE", "ECC_ENABLED"],
        "id_keys": [],
        "author_keys": [],
        "minimum_guest_svn": 0,
    }
    draft["roles"]["node"]["snp_measurements"] = [dict(MEASUREMENT)]
    return draft


def test_snp_rules_carry_what_the_policy_says(snp_draft: dict[str, Any]) -> None:
    policy = parse(jcs.dumps(snp_draft))
    rules = policy.rules("node")
    assert rules.snp is not None
    assert rules.snp.vendor_roots == policy.hardware.roots("sev-snp")
    assert rules.snp.rule.minimum_tcb == {
        Product.MILAN: Tcb(4, 0, 24, 219),
        Product.TURIN: Tcb(4, 0, 24, 219, 1),
    }
    assert rules.snp.rule.minimum_abi == (1, 55)
    assert rules.snp.rule.required_platform == PlatformFlag.ALIAS_CHECK_COMPLETE | PlatformFlag.ECC_ENABLED
    assert isinstance(rules.snp.measurements, MeasurementSet)
    assert [allowed.to_json() for allowed in rules.snp.measurements.allowed] == [MEASUREMENT]


def test_a_role_without_snp_measurements_is_allowed_none(snp_draft: dict[str, Any]) -> None:
    rules = parse(jcs.dumps(snp_draft)).rules("kms")
    assert rules.snp is not None
    assert isinstance(rules.snp.measurements, MeasurementSet)
    assert rules.snp.measurements.allowed == frozenset()


def test_a_technology_without_rules_or_roots_has_none(draft: dict[str, Any], snp_draft: dict[str, Any]) -> None:
    assert parse(jcs.dumps(snp_draft)).rules("node").tdx is None
    del snp_draft["snp"]
    assert parse(jcs.dumps(snp_draft)).rules("node").snp is None


def test_a_role_may_ask_for_more_than_the_policy_and_not_for_less(draft: dict[str, Any]) -> None:
    draft["roles"]["node"]["tcb"] = {**draft["tcb"], "statuses": ["OutOfDate", "UpToDate"], "refused_advisories": ["A"]}
    policy = parse(jcs.dumps(draft))
    node, kms = policy.rules("node").tdx, policy.rules("kms").tdx
    assert node is not None
    assert kms is not None
    assert isinstance(node.tcb, AllOf)
    assert node.tcb.rules[0] == kms.tcb == policy.hardware.tcb
    assert isinstance(node.tcb.rules[1], TcbRule)
    assert node.tcb.rules[1].refused_advisories == {"A"}


def test_cpu_families_are_listed_and_revoked(draft: dict[str, Any]) -> None:
    draft["devices"] |= {"allowed_families": ["90c06f000000"], "revoked_families": ["b0c06f000000", "milan-19-01"]}
    devices = parse(jcs.dumps(draft)).hardware.devices
    assert devices.allowed_families == {"90c06f000000"}
    assert devices.revoked_families == {"b0c06f000000", "milan-19-01"}


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a family both allowed and revoked": (
        lambda d: d["devices"].update(allowed_families=["milan"], revoked_families=["milan"]),
        "devices.revoked_families names milan",
    ),
    "a family in capitals": (lambda d: d["devices"].update(allowed_families=["Milan"]), "devices.allowed_families"),
    "no product": (lambda d: d["snp"].update(minimum_tcb={}), "snp.minimum_tcb must not be empty"),
    "an unknown product": (lambda d: d["snp"]["minimum_tcb"].update(Rome=LEVELS), "snp.minimum_tcb.'Rome'"),
    "a level without a component": (
        lambda d: d["snp"]["minimum_tcb"]["Milan"].pop("snp"),
        "snp.minimum_tcb.Milan.snp is missing",
    ),
    "a level beyond a byte": (
        lambda d: d["snp"]["minimum_tcb"]["Milan"].update(microcode=256),
        "snp.minimum_tcb.Milan.microcode",
    ),
    "a level that asks for nothing": (
        lambda d: d["snp"]["minimum_tcb"].update(Milan=dict.fromkeys(LEVELS, 0)),
        "snp.minimum_tcb.Milan must ask for something",
    ),
    "a Turin level without its fifth component": (
        lambda d: d["snp"]["minimum_tcb"]["Turin"].pop("fmc"),
        "snp.minimum_tcb.Turin.fmc is missing",
    ),
    "a model of no product": (
        lambda d: d["devices"].update(revoked_families=["rome-17-31"]),
        r"devices.revoked_families\[0\]",
    ),
    "an unknown component": (
        lambda d: d["snp"]["minimum_tcb"]["Milan"].update(ucode=1),
        "snp.minimum_tcb.Milan.ucode is not a known member",
    ),
    "a flag that no platform has": (lambda d: d["snp"].update(required_platform=["FAST"]), "snp.required_platform"),
    "a CRL of no age": (lambda d: d["snp"].update(maximum_crl_age_seconds=0), "snp.maximum_crl_age_seconds"),
    "a leave to debug": (lambda d: d["snp"].update(allow_debug=True), "snp.allow_debug is not a known member"),
    "a measurement twice": (
        lambda d: d["roles"]["node"]["snp_measurements"].append(dict(MEASUREMENT)),
        "roles.node.snp_measurements",
    ),
    "a measurement without its launch": (
        lambda d: d["roles"]["node"]["snp_measurements"][0].pop("launch_digest"),
        r"roles.node.snp_measurements\[0\].launch_digest is missing",
    ),
    "patch levels for a role that say nothing": (lambda d: d["roles"]["node"].update(tcb={}), "roles.node.tcb"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_exactly_a_rule_is_refused_by_name(snp_draft: dict[str, Any], name: str) -> None:
    damage, message = DAMAGES[name]
    damage(snp_draft)
    with pytest.raises(PolicyMalformed, match=message):
        parse(jcs.dumps(snp_draft))
