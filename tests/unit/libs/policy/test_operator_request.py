from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.policy.document import Policy, parse
from libs.policy.operator_request import (
    OperatorRequest,
    OperatorRequestMalformed,
    OperatorSignatureInvalid,
    sign_operator_request,
    verify_operator_request,
)

REQUEST = OperatorRequest(role="operator", name="alice", csr=b"csr", nonce=b"n" * 32)


@pytest.fixture
def policy(draft: dict[str, Any]) -> Policy:
    return parse(jcs.dumps(draft))


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def test_an_operator_of_the_policy_is_heard(policy: Policy, operators: list[Ed25519PrivateKey]) -> None:
    signature = sign_operator_request(REQUEST, operators[1])
    verify_operator_request(REQUEST, _public(operators[1]), signature, policy)


def test_the_signed_bytes_are_the_documented_ones() -> None:
    body = (
        f'{{"challenge":"{"6e" * 32}","csr_sha256":"{hashlib.sha256(b"csr").hexdigest()}",'
        '"name":"alice","role":"operator"}'
    )
    expected = b"teemesh/operator-certificate/v1\0" + hashlib.sha256(body.encode()).digest()
    assert REQUEST.signing_input == expected


def test_a_key_that_the_policy_does_not_name_is_refused(policy: Policy, operators: list[Ed25519PrivateKey]) -> None:
    signature = sign_operator_request(REQUEST, operators[4])
    with pytest.raises(OperatorSignatureInvalid) as refusal:
        verify_operator_request(REQUEST, _public(operators[4]), signature, policy)
    assert refusal.value.reason == "OPERATOR_SIGNATURE_INVALID"


@pytest.mark.parametrize("change", [{"role": "auditor"}, {"name": "bob"}, {"csr": b"other"}, {"nonce": b"m" * 32}])
def test_a_signature_over_another_request_is_refused(
    policy: Policy, operators: list[Ed25519PrivateKey], change: dict[str, Any]
) -> None:
    signature = sign_operator_request(REQUEST, operators[0])
    with pytest.raises(OperatorSignatureInvalid):
        verify_operator_request(dataclasses.replace(REQUEST, **change), _public(operators[0]), signature, policy)


@pytest.mark.parametrize(
    "change", [{"role": "kms"}, {"role": ""}, {"name": ""}, {"name": "Alice"}, {"name": "a" * 41}, {"nonce": b""}]
)
def test_what_no_person_can_be_is_refused(operators: list[Ed25519PrivateKey], change: dict[str, Any]) -> None:
    with pytest.raises(OperatorRequestMalformed) as refusal:
        sign_operator_request(dataclasses.replace(REQUEST, **change), operators[0])
    assert refusal.value.reason == "OPERATOR_REQUEST_MALFORMED"
