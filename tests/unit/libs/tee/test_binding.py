from __future__ import annotations

import hashlib

import pytest

from libs.tee import binding

NONCE = bytes(range(32))
SPKI = b"spki"


def test_report_data_is_the_published_formula() -> None:
    claims_digest = hashlib.sha256(b'{"a":1,"role":"kms"}').digest()
    preimage = b"teemesh/evidence/v1\x00" + NONCE + hashlib.sha256(SPKI).digest() + claims_digest
    assert binding.report_data(NONCE, SPKI, {"role": "kms", "a": 1}) == hashlib.sha512(preimage).digest()


def test_gpu_nonce_is_the_published_formula() -> None:
    preimage = b"teemesh/gpu/v1\x00" + NONCE + hashlib.sha256(SPKI).digest()
    assert binding.gpu_nonce(NONCE, SPKI) == hashlib.sha256(preimage).digest()


def test_ratls_form_binds_the_key_alone() -> None:
    assert binding.ratls_report_data(SPKI) == hashlib.sha512(b"ratls-cert:spki").digest()


def test_nonce_of_another_size_is_a_bug() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        binding.report_data(b"short", SPKI, {})
