from __future__ import annotations

import struct

import pytest

from libs.tee.dstack_environment_key import (
    EnvironmentKeyNotCurrent,
    EnvironmentKeyNotProven,
    verify_environment_key,
    verify_environment_key_undated,
)
from libs.tee.keccak import keccak256
from libs.tee.secp256k1 import HighSignatureRefused, SignatureLengthRefused
from services.devtee import secp256k1
from tests.unit.libs.tee.test_secp256k1 import high

NOW = 1_790_000_000
APP_ID = b"\x0a" * 20
PUBLIC_KEY = bytes(range(32))
ROOT = b"\x01" * 32
KMS_ROOT = secp256k1.compressed_public_key(ROOT)
TAG = b"dstack-env-encrypt-pubkey:"


def signed(message: bytes, root: bytes = ROOT) -> bytes:
    return secp256k1.sign_recoverable(root, keccak256(message))


def dated(at: int, root: bytes = ROOT) -> bytes:
    return signed(TAG + APP_ID + struct.pack(">Q", at) + PUBLIC_KEY, root)


UNDATED = signed(TAG + APP_ID + PUBLIC_KEY)


def verify(
    signature: bytes,
    at: int = NOW,
    *,
    public_key: bytes = PUBLIC_KEY,
    app_id: bytes = APP_ID,
    kms_root: bytes = KMS_ROOT,
    now: int = NOW,
) -> None:
    verify_environment_key(public_key, signature, at, app_id=app_id, kms_root=kms_root, now=now)


@pytest.mark.parametrize("age", [-60, 0, 300])
def test_a_signature_of_now_is_accepted(age: int) -> None:
    verify(dated(NOW - age), NOW - age)


@pytest.mark.parametrize("age", [-61, 301, NOW])
def test_a_signature_of_another_time_is_refused(age: int) -> None:
    with pytest.raises(EnvironmentKeyNotCurrent) as refusal:
        verify(dated(NOW - age), NOW - age)
    assert refusal.value.reason == "ENVIRONMENT_KEY_NOT_CURRENT"


def test_the_time_is_signed() -> None:
    with pytest.raises(EnvironmentKeyNotProven):
        verify(dated(NOW - 10_000), NOW)


@pytest.mark.parametrize("at", [-1, 2**64])
def test_a_time_that_cannot_be_signed_is_refused(at: int) -> None:
    with pytest.raises(EnvironmentKeyNotProven, match="eight bytes"):
        verify(dated(NOW), at)


def test_another_root_is_refused() -> None:
    with pytest.raises(EnvironmentKeyNotProven) as refusal:
        verify(dated(NOW, root=b"\x02" * 32))
    assert refusal.value.reason == "ENVIRONMENT_KEY_NOT_PROVEN"
    with pytest.raises(EnvironmentKeyNotProven):
        verify_environment_key_undated(
            PUBLIC_KEY, signed(TAG + APP_ID + PUBLIC_KEY, b"\x02" * 32), app_id=APP_ID, kms_root=KMS_ROOT
        )


def test_another_application_is_refused() -> None:
    with pytest.raises(EnvironmentKeyNotProven):
        verify(dated(NOW), app_id=b"\x0b" * 20)
    with pytest.raises(EnvironmentKeyNotProven):
        verify_environment_key_undated(PUBLIC_KEY, UNDATED, app_id=b"\x0b" * 20, kms_root=KMS_ROOT)


def test_another_key_is_refused() -> None:
    with pytest.raises(EnvironmentKeyNotProven):
        verify(dated(NOW), public_key=bytes(32))
    with pytest.raises(EnvironmentKeyNotProven):
        verify_environment_key_undated(bytes(32), UNDATED, app_id=APP_ID, kms_root=KMS_ROOT)


def test_a_signature_without_time_is_accepted_only_as_one() -> None:
    verify_environment_key_undated(PUBLIC_KEY, UNDATED, app_id=APP_ID, kms_root=KMS_ROOT)
    with pytest.raises(EnvironmentKeyNotProven):
        verify(UNDATED)
    with pytest.raises(EnvironmentKeyNotProven):
        verify_environment_key_undated(PUBLIC_KEY, dated(NOW), app_id=APP_ID, kms_root=KMS_ROOT)


@pytest.mark.parametrize("cut", [19, 21])
def test_bytes_do_not_move_between_application_and_key(cut: int) -> None:
    # The root signed exactly these bytes; only the place where they are cut differs.
    both = APP_ID + PUBLIC_KEY
    with pytest.raises(EnvironmentKeyNotProven, match="has 20 bytes"):
        verify_environment_key_undated(both[cut:], UNDATED, app_id=both[:cut], kms_root=KMS_ROOT)


@pytest.mark.parametrize(("app_id", "public_key"), [(APP_ID[:19], PUBLIC_KEY), (APP_ID, PUBLIC_KEY + b"\0")])
def test_what_the_root_signed_in_another_length_is_refused(app_id: bytes, public_key: bytes) -> None:
    with pytest.raises(EnvironmentKeyNotProven, match="has 20 bytes"):
        verify_environment_key_undated(public_key, signed(TAG + app_id + public_key), app_id=app_id, kms_root=KMS_ROOT)


def test_a_bent_signature_is_refused_by_its_own_reason() -> None:
    with pytest.raises(HighSignatureRefused):
        verify(high(dated(NOW)))
    with pytest.raises(SignatureLengthRefused):
        verify(dated(NOW)[:64])
