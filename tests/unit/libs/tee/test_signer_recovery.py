from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.errors import MeshError
from libs.tee.secp256k1 import is_public_key
from libs.tee.signer_recovery import (
    HighSignatureRefused,
    RecoveryIdRefused,
    SignatureLengthRefused,
    SignerNotRecoverable,
    recover_signer,
)
from services.devtee import secp256k1

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
KEY = bytes(range(1, 33))
DIGEST = bytes(range(32))
SIGNATURE = secp256k1.sign_recoverable(KEY, DIGEST)
SIGNER = secp256k1.compressed_public_key(KEY)


def high(signature: bytes) -> bytes:
    """The other form of the same signature: n - s, and the other nonce point."""
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([signature[64] ^ 1])


def test_the_signer_is_recovered() -> None:
    assert recover_signer(DIGEST, SIGNATURE) == SIGNER


def test_ethereums_recovery_ids_mean_the_same() -> None:
    assert recover_signer(DIGEST, SIGNATURE[:64] + bytes([SIGNATURE[64] + 27])) == SIGNER


def test_another_digest_names_another_signer() -> None:
    assert recover_signer(bytes(31) + b"\1", SIGNATURE) != SIGNER


@pytest.mark.parametrize("size", [0, 1, 64, 66, 130])
def test_another_length_is_refused(size: int) -> None:
    with pytest.raises(SignatureLengthRefused) as refusal:
        recover_signer(DIGEST, (SIGNATURE * 2)[:size])
    assert refusal.value.reason == "SIGNATURE_LENGTH_REFUSED"


@pytest.mark.parametrize("recovery_id", [2, 3, 26, 29, 255])
def test_another_recovery_id_is_refused(recovery_id: int) -> None:
    with pytest.raises(RecoveryIdRefused) as refusal:
        recover_signer(DIGEST, SIGNATURE[:64] + bytes([recovery_id]))
    assert refusal.value.reason == "RECOVERY_ID_REFUSED"


def test_the_high_form_of_a_signature_is_refused() -> None:
    with pytest.raises(HighSignatureRefused) as refusal:
        recover_signer(DIGEST, high(SIGNATURE))
    assert refusal.value.reason == "HIGH_SIGNATURE_REFUSED"


@pytest.mark.parametrize(
    ("r", "s"),
    [(0, 1), (1, 0), (ORDER, 1), (2**256 - 1, 1), (5, 1)],  # No point of the curve has x = 5.
)
def test_numbers_that_belong_to_no_key_are_refused(r: int, s: int) -> None:
    with pytest.raises(SignerNotRecoverable) as refusal:
        recover_signer(DIGEST, r.to_bytes(32, "big") + s.to_bytes(32, "big") + b"\0")
    assert refusal.value.reason == "SIGNER_NOT_RECOVERABLE"


@settings(max_examples=50, deadline=None)
@given(numbers=st.binary(min_size=64, max_size=64), recovery_id=st.sampled_from([0, 1, 27, 28]))
def test_hostile_signatures_name_a_key_or_are_refused(numbers: bytes, recovery_id: int) -> None:
    try:
        signer = recover_signer(DIGEST, numbers + bytes([recovery_id]))
    except MeshError:
        return
    assert is_public_key(signer)
