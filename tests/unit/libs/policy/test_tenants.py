from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from libs import jcs
from libs.policy.tenants import (
    MAX_RECORD_BYTES,
    TenantRecord,
    TenantRecordMalformed,
    TenantSignatureInvalid,
    TenantVersionNotNext,
    api_key_digest,
    sign_tenant,
    verify_tenant,
    verify_tenant_successor,
)

RECORD = TenantRecord("ab" * 16, 1, "Example Inc.", (api_key_digest("one"), api_key_digest("two")))


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
    closed = dataclasses.replace(RECORD, api_key_sha256=())
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
