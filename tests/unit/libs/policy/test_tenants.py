from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from libs import jcs
from libs.aci.endpoints import DEFINED
from libs.policy.tenant_record import (
    MAX_KEYS,
    SCOPE_OF_PATH,
    ApiKey,
    Limits,
    TenantRecord,
    TenantRecordMalformed,
    unrestricted,
)
from libs.policy.tenants import (
    MAX_RECORD_BYTES,
    TenantSignatureInvalid,
    TenantVersionNotNext,
    api_key_digest,
    sign_tenant,
    verify_tenant,
    verify_tenant_successor,
)

RECORD = TenantRecord("ab" * 16, 1, "Example Inc.", unrestricted(api_key_digest("one"), api_key_digest("two")))


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_a_signed_record_is_read_back(tenant_admin: Ed25519PrivateKey) -> None:
    signed = sign_tenant(RECORD, tenant_admin)
    assert verify_tenant(signed, _public(tenant_admin)) == RECORD
    assert jcs.dumps(jcs.loads(signed)) == signed


def test_the_signed_bytes_are_the_documented_ones(tenant_admin: Ed25519PrivateKey) -> None:
    value = jcs.loads(sign_tenant(RECORD, tenant_admin))
    message = b"teemesh/tenant/v1\0" + hashlib.sha256(jcs.dumps(value["record"])).digest()
    tenant_admin.public_key().verify(bytes.fromhex(value["signature"]), message)


def test_a_tenant_without_keys_is_one_that_may_do_nothing(tenant_admin: Ed25519PrivateKey) -> None:
    closed = dataclasses.replace(RECORD, keys=())
    assert verify_tenant(sign_tenant(closed, tenant_admin), _public(tenant_admin)) == closed


def test_only_the_administrator_of_the_policy_counts(
    tenant_admin: Ed25519PrivateKey, operators: list[Ed25519PrivateKey]
) -> None:
    with pytest.raises(TenantSignatureInvalid) as refusal:
        verify_tenant(sign_tenant(RECORD, operators[0]), _public(tenant_admin))
    assert refusal.value.reason == "TENANT_SIGNATURE_INVALID"


def test_an_added_api_key_is_noticed(tenant_admin: Ed25519PrivateKey) -> None:
    value = jcs.loads(sign_tenant(RECORD, tenant_admin))
    value["record"]["api_key_sha256"].append(api_key_digest("three"))
    with pytest.raises(TenantSignatureInvalid):
        verify_tenant(jcs.dumps(value), _public(tenant_admin))


FULL = TenantRecord(
    "ab" * 16,
    2,
    "Example Inc.",
    (
        ApiKey("laptop", api_key_digest("one"), ("chat", "receipts"), 2_000_000_000, ("qwen3",)),
        ApiKey("batch", api_key_digest("two"), scopes=()),
    ),
    Limits(requests_per_minute=60, burst=5, concurrent=4, tokens_per_day=10**6, tokens_per_month=10**7),
    disabled=True,
)


def test_a_record_that_needs_no_more_is_written_as_old_readers_know_it(tenant_admin: Ed25519PrivateKey) -> None:
    value = jcs.loads(sign_tenant(RECORD, tenant_admin))["record"]
    assert value.keys() == {"tenant_id", "version", "name", "api_key_sha256"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"disabled": False},
        {"limits": Limits()},
        {"limits": Limits(concurrent=1), "disabled": False, "keys": unrestricted(api_key_digest("one"))},
    ],
)
def test_what_the_second_form_says_is_read_back(tenant_admin: Ed25519PrivateKey, change: dict[str, Any]) -> None:
    record = dataclasses.replace(FULL, **change)
    signed = sign_tenant(record, tenant_admin)
    assert jcs.loads(signed)["record"]["form"] == 2
    assert verify_tenant(signed, _public(tenant_admin)) == record


def test_the_second_form_of_a_plain_record_is_read_as_it_was_signed(tenant_admin: Ed25519PrivateKey) -> None:
    value = FULL.value | {"keys": [key.value for key in RECORD.keys], "limits": {}, "disabled": False}
    message = b"teemesh/tenant/v1\0" + hashlib.sha256(jcs.dumps(value)).digest()
    signed = jcs.dumps({"record": value, "signature": tenant_admin.sign(message).hex()})
    assert verify_tenant(signed, _public(tenant_admin)).keys == RECORD.keys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": 3}, "record.form"),
        ({"api_key_sha256": []}, "record.api_key_sha256"),
        ({"keys": [{"id": "a", "sha256": "11" * 32, "scope": []}]}, "scope"),
        ({"keys": [{"id": "a", "sha256": "11" * 32, "scopes": ["everything"]}]}, "scopes"),
        ({"keys": [{"id": "a b", "sha256": "11" * 32}]}, "id"),
        ({"keys": [{"id": "a", "sha256": "11" * 32, "not_after": 0}]}, "not_after"),
        ({"keys": [{"id": "a", "sha256": "11" * 32, "models": [""]}]}, "models"),
        ({"keys": [{"id": "a", "sha256": "11" * 32}, {"id": "a", "sha256": "22" * 32}]}, "twice"),
        ({"keys": [{"id": "a", "sha256": "11" * 32}, {"id": "b", "sha256": "11" * 32}]}, "twice"),
        ({"keys": [{"id": f"k{n}", "sha256": f"{n:064x}"} for n in range(MAX_KEYS + 1)]}, "at most"),
        ({"limits": {"requests_per_minute": 0}}, "requests_per_minute"),
        ({"limits": {"burst": 3}}, "burst"),
        ({"limits": {"tokens_per_hour": 3}}, "tokens_per_hour"),
        ({"disabled": 1}, "disabled"),
    ],
)
def test_the_second_form_is_read_strictly(
    tenant_admin: Ed25519PrivateKey, change: dict[str, Any], message: str
) -> None:
    value = FULL.value | change
    signed = jcs.dumps({"record": value, "signature": "00" * 64})
    with pytest.raises(TenantRecordMalformed, match=message):
        verify_tenant(signed, _public(tenant_admin))


def test_every_endpoint_that_takes_prompts_has_a_scope() -> None:
    assert {endpoint.path for endpoint in DEFINED} == SCOPE_OF_PATH.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tenant_id": "ab"}, "record.tenant_id"),
        ({"version": 0}, "record.version"),
        ({"name": "two\nlines"}, "record.name"),
        ({"api_key_sha256": [api_key_digest("a")] * 2}, "record.api_key_sha256"),
        ({"api_key_sha256": ["secret"]}, r"record.api_key_sha256\[0\]"),
        ({"limit": 1}, "record.limit"),
    ],
)
def test_a_record_is_read_strictly(tenant_admin: Ed25519PrivateKey, change: dict[str, Any], message: str) -> None:
    value = jcs.loads(sign_tenant(RECORD, tenant_admin))
    value["record"].update(change)
    with pytest.raises(TenantRecordMalformed, match=message) as refusal:
        verify_tenant(jcs.dumps(value), _public(tenant_admin))
    assert refusal.value.reason == "TENANT_RECORD_MALFORMED"


def test_nobody_signs_what_no_reader_accepts(tenant_admin: Ed25519PrivateKey) -> None:
    with pytest.raises(TenantRecordMalformed):
        sign_tenant(dataclasses.replace(RECORD, name=""), tenant_admin)


def test_a_record_beyond_the_limit_is_refused(tenant_admin: Ed25519PrivateKey) -> None:
    with pytest.raises(TenantRecordMalformed, match="larger"):
        verify_tenant(b" " * (MAX_RECORD_BYTES + 1), _public(tenant_admin))


@pytest.mark.parametrize(("stored", "version"), [(None, 2), (RECORD, 1), (RECORD, 3)])
def test_a_version_out_of_turn_is_refused(stored: TenantRecord | None, version: int) -> None:
    with pytest.raises(TenantVersionNotNext) as refusal:
        verify_tenant_successor(stored, dataclasses.replace(RECORD, version=version))
    assert refusal.value.reason == "TENANT_VERSION_NOT_NEXT"


def test_the_next_version_of_the_same_tenant_follows() -> None:
    verify_tenant_successor(None, RECORD)
    verify_tenant_successor(RECORD, dataclasses.replace(RECORD, version=2))
    with pytest.raises(TenantVersionNotNext, match="another tenant"):
        verify_tenant_successor(RECORD, dataclasses.replace(RECORD, version=2, tenant_id="cd" * 16))


@given(data=st.binary(max_size=100))
def test_hostile_bytes_raise_only_the_refusal(data: bytes) -> None:
    with pytest.raises(TenantRecordMalformed):
        verify_tenant(data, b"k" * 32)
