from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs import jcs
from libs.policy.document import MAX_POLICY_BYTES, NO_PREVIOUS, PolicyMalformed, parse
from libs.tee.measurement import Measurement, MeasurementSet
from libs.tee.role import RoleRules

Damage = Callable[[dict[str, Any]], object]


def test_a_complete_policy_is_read_whole(draft: dict[str, Any]) -> None:
    policy = parse(jcs.dumps(draft))
    assert policy.document == jcs.dumps(draft)
    assert policy.digest == hashlib.sha256(jcs.dumps(draft)).digest()
    assert (policy.version, policy.previous, policy.operator_threshold) == (1, NO_PREVIOUS, 2)
    assert policy.development_roots == ("devtee",)
    assert policy.models == {"smollm2-135m": frozenset(draft["models"]["smollm2-135m"])}


def test_formatting_does_not_change_the_digest(draft: dict[str, Any]) -> None:
    spaced = json.dumps(dict(reversed(draft.items())), indent=3).encode()
    assert parse(spaced).digest == parse(jcs.dumps(draft)).digest


def allowed(rules: RoleRules) -> frozenset[Measurement]:
    assert rules.tdx is not None
    assert isinstance(rules.tdx.measurements, MeasurementSet)
    return rules.tdx.measurements.allowed


def test_rules_carry_what_the_policy_says_for_the_role(draft: dict[str, Any]) -> None:
    policy = parse(jcs.dumps(draft))
    rules = policy.rules("node")
    assert rules.tdx is not None
    assert [each.to_json() for each in allowed(rules)] == draft["roles"]["node"]["measurements"]
    assert rules.models == policy.models
    assert policy.hardware.devices.revoked == set(draft["devices"]["revoked"])
    assert rules.tdx.vendor_roots == (bytes.fromhex(draft["vendor_roots"][0]["certificate"]),)
    assert policy.rules("kms").models == {}


@pytest.mark.parametrize("role", ["router", "operator", "", "kms "])
def test_a_role_that_is_not_granted_is_allowed_nothing(draft: dict[str, Any], role: str) -> None:
    rules = parse(jcs.dumps(draft)).rules(role)
    assert allowed(rules) == frozenset()
    assert rules.gpu_required


def test_a_role_may_be_granted_nothing(draft: dict[str, Any]) -> None:
    draft["roles"]["node"]["measurements"] = []
    assert allowed(parse(jcs.dumps(draft)).rules("node")) == frozenset()


# The object identifier of the curve P-256, which the library reads when it is asked for the key.
_P256 = bytes.fromhex("06082a8648ce3d030107")


def _damage_root(draft: dict[str, Any], before: bytes, after: bytes) -> None:
    root = draft["vendor_roots"][0]
    certificate = bytes.fromhex(root["certificate"])
    assert before in certificate
    root["certificate"] = certificate.replace(before, after).hex()


DAMAGES: dict[str, tuple[Damage, str]] = {
    "an unknown member": (lambda d: d.update(extra=1), "extra is not a known member"),
    "an unknown nested member": (lambda d: d["tcb"].update(grace_days=1), "tcb.grace_days"),
    "a missing member": (lambda d: d.pop("devices"), "devices is missing"),
    "another format version": (lambda d: d.update(v=2), "v must"),
    "a boolean for a number": (lambda d: d.update(version=True), "version"),
    "version 0": (lambda d: d.update(version=0), "version"),
    "a first version that follows something": (lambda d: d.update(previous="1" * 64), "previous"),
    "a later version that follows nothing": (lambda d: d.update(version=2), "previous"),
    "an empty validity": (lambda d: d.update(not_after=d["not_before"]), "not_after"),
    "a trust domain in capitals": (lambda d: d.update(trust_domain="Mesh.local"), "trust_domain"),
    "a trust domain with an empty label": (lambda d: d.update(trust_domain="mesh..local"), "trust_domain"),
    "no operators": (lambda d: d["operators"].update(keys=[], threshold=0), "operators.keys must not be empty"),
    "an operator twice": (lambda d: d["operators"].update(keys=[d["operators"]["keys"][0]] * 2), "operators.keys"),
    "a key in capitals": (lambda d: d["operators"]["keys"].append("AB" * 32), r"operators.keys\[3\]"),
    "a short key": (lambda d: d["operators"]["keys"].append("ab" * 31), r"operators.keys\[3\]"),
    "a threshold of none": (lambda d: d["operators"].update(threshold=0), "operators.threshold"),
    "a threshold beyond the keys": (lambda d: d["operators"].update(threshold=4), "operators.threshold"),
    "no vendor roots": (lambda d: d.update(vendor_roots=[]), "vendor_roots must not be empty"),
    "a vendor root twice": (lambda d: d["vendor_roots"].append(d["vendor_roots"][0]), "vendor_roots"),
    "a vendor root that is no certificate": (
        lambda d: d["vendor_roots"][0].update(certificate="3000"),
        r"vendor_roots\[0\].certificate",
    ),
    "a vendor root whose name is no text": (
        lambda d: _damage_root(d, b"development vendor root", b"\xffevelopment vendor root"),
        r"vendor_roots\[0\].certificate",
    ),
    "a vendor root with a key of an unknown kind": (
        lambda d: _damage_root(d, _P256, bytes.fromhex("06082a8648ce3d030163")),
        r"vendor_roots\[0\].certificate",
    ),
    "a development root that passes for hardware": (
        lambda d: d["vendor_roots"][0].update(development=False),
        r"vendor_roots\[0\].development must be true",
    ),
    "another kind of TEE": (lambda d: d["vendor_roots"][0].update(tee_type="sgx"), r"vendor_roots\[0\].tee_type"),
    "no accepted status": (lambda d: d["tcb"].update(statuses=[]), "tcb.statuses"),
    "a revoked platform": (lambda d: d["tcb"].update(statuses=["UpToDate", "Revoked"]), r"tcb.statuses\[1\]"),
    "collateral of no age": (
        lambda d: d["tcb"].update(maximum_collateral_age_seconds=0),
        "tcb.maximum_collateral_age_seconds",
    ),
    "a debug TD": (
        lambda d: d.update(td_attributes=["0100001000000000"]),
        r"td_attributes\[0\] must not allow a debug",
    ),
    "no TD attributes": (lambda d: d.update(td_attributes=[]), "td_attributes must not be empty"),
    "a device both allowed and revoked": (
        lambda d: d["devices"].update(allowed=d["devices"]["revoked"]),
        "devices.revoked",
    ),
    "no roles": (lambda d: d.update(roles={}), "roles must not be empty"),
    "an unknown role": (lambda d: d["roles"].update(knode=d["roles"]["node"]), "roles.'knode'"),
    "measurements for people": (lambda d: d["roles"].update(operator=d["roles"]["node"]), "roles.'operator'"),
    "a measurement twice": (
        lambda d: d["roles"]["kms"]["measurements"].append(d["roles"]["kms"]["measurements"][0]),
        "roles.kms.measurements",
    ),
    "a measurement without a register": (
        lambda d: d["roles"]["kms"]["measurements"][0].pop("rtmr2"),
        r"roles.kms.measurements\[0\].rtmr2 is missing",
    ),
    "a text for a flag": (lambda d: d["roles"]["kms"].update(gpu_required="no"), "roles.kms.gpu_required"),
    "a model without weights": (lambda d: d["models"].update(gpt=[]), "models.gpt must not be empty"),
    "an object for a list": (lambda d: d.update(key_releases={}), "key_releases must be a list"),
    "a key rule for nobody": (lambda d: d["key_releases"][3].update(roles=[]), r"key_releases\[3\].roles"),
    "a key rule twice": (lambda d: d["key_releases"].append(d["key_releases"][3]), "key_releases"),
    "a wildcard for everything": (lambda d: d["key_releases"][3].update(name="*"), r"key_releases\[3\].name"),
    "a wildcard in the middle": (lambda d: d["key_releases"][3].update(name="a/*/b"), r"key_releases\[3\].name"),
    "an age in milliseconds": (lambda d: d.update(challenge_max_age_seconds=3_900_000), "challenge_max_age_seconds"),
    "evidence of no age": (lambda d: d.update(evidence_max_age_seconds=0), "evidence_max_age_seconds"),
    "a revocation nobody would act on": (lambda d: d["revocations"].append({}), r"revocations\[0\]"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_exactly_a_policy_is_refused_by_name(draft: dict[str, Any], name: str) -> None:
    damage, message = DAMAGES[name]
    damage(draft)
    with pytest.raises(PolicyMalformed, match=message) as refusal:
        parse(jcs.dumps(draft))
    assert refusal.value.reason == "POLICY_MALFORMED"


def test_every_member_is_required(draft: dict[str, Any]) -> None:
    for name in draft:
        with pytest.raises(PolicyMalformed):
            parse(jcs.dumps({other: value for other, value in draft.items() if other != name}))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"v":1,"v":1}', b'{"v":1.0}', b"\xff", b" " * (MAX_POLICY_BYTES + 1)]
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(PolicyMalformed):
        parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20) | st.just("ab" * 32),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=12), children, max_size=3),
    max_leaves=8,
)


@given(data=st.binary(max_size=200))
def test_hostile_bytes_raise_only_the_refusal(data: bytes) -> None:
    with pytest.raises(PolicyMalformed):
        parse(data)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_policy_with_any_part_replaced_is_read_or_refused(draft: dict[str, Any], data: st.DataObject) -> None:
    value = data.draw(json_values)
    policy = copy.deepcopy(draft)
    at: Any = policy
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        inner = at[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        at = inner
    at[key] = value
    try:
        parse(jcs.dumps(policy))
    except PolicyMalformed:
        return
