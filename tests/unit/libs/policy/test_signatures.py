from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from libs import jcs
from libs.policy.compose import Anchors
from libs.policy.document import PolicyMalformed
from libs.policy.signatures import (
    PolicyOfAnotherMesh,
    PolicySignaturesInsufficient,
    parse_signed,
    sign,
    verify,
    verify_own,
    verify_seed,
    with_signature,
)

Keys = list[Ed25519PrivateKey]


def _public(keys: Keys) -> list[bytes]:
    return [key.public_key().public_bytes_raw() for key in keys]


def _signed(draft: dict[str, Any], keys: Keys) -> bytes:
    document = parse_signed(jcs.dumps({"policy": draft, "signatures": []}))
    for key in keys:
        document = with_signature(document, sign(jcs.dumps(draft), key))
    return document.document


def test_the_signature_is_the_documented_one(draft: dict[str, Any], operators: Keys) -> None:
    entry = sign(jcs.dumps(draft), operators[0])
    message = b"teemesh/policy/v1\0" + hashlib.sha256(jcs.dumps(draft)).digest()
    Ed25519PublicKey.from_public_bytes(entry.key).verify(entry.signature, message)


@pytest.mark.parametrize("signers", [(0, 1), (1, 2), (2, 0), (0, 1, 2)])
def test_any_threshold_of_operators_will_do(draft: dict[str, Any], operators: Keys, signers: tuple[int, ...]) -> None:
    signed = _signed(draft, [operators[index] for index in signers])
    assert verify(signed, _public(operators[:3]), 2).version == 1


@pytest.mark.parametrize("signers", [(), (0,), (2,)])
def test_fewer_than_the_threshold_are_not_enough(
    draft: dict[str, Any], operators: Keys, signers: tuple[int, ...]
) -> None:
    signed = _signed(draft, [operators[index] for index in signers])
    with pytest.raises(PolicySignaturesInsufficient) as refusal:
        verify(signed, _public(operators[:3]), 2)
    assert refusal.value.reason == "POLICY_SIGNATURES_INSUFFICIENT"


def test_the_verifiers_threshold_counts_not_the_policys(draft: dict[str, Any], operators: Keys) -> None:
    draft["operators"]["threshold"] = 1
    with pytest.raises(PolicySignaturesInsufficient, match="who must approve it"):
        verify(_signed(draft, operators[:1]), _public(operators[:3]), 2)


def test_the_policys_own_operators_must_agree_too(draft: dict[str, Any], operators: Keys) -> None:
    with pytest.raises(PolicySignaturesInsufficient, match="its own operators"):
        verify(_signed(draft, operators[:1]), _public(operators[:1]), 1)


def test_operators_that_the_policy_names_for_itself_do_not_count_for_others(
    draft: dict[str, Any], operators: Keys
) -> None:
    with pytest.raises(PolicySignaturesInsufficient, match="who must approve it"):
        verify(_signed(draft, operators[:3]), _public(operators[3:]), 1)


def test_a_signature_by_an_unknown_key_is_refused_even_beside_enough_others(
    draft: dict[str, Any], operators: Keys
) -> None:
    with pytest.raises(PolicySignaturesInsufficient, match="no operator's key"):
        verify(_signed(draft, [*operators[:3], operators[4]]), _public(operators[:3]), 2)


def test_an_invalid_signature_is_refused_even_beside_enough_others(draft: dict[str, Any], operators: Keys) -> None:
    value = jcs.loads(_signed(draft, operators[:3]))
    value["signatures"][2]["signature"] = value["signatures"][1]["signature"]
    with pytest.raises(PolicySignaturesInsufficient, match="is not valid"):
        verify(jcs.dumps(value), _public(operators[:3]), 2)


def test_a_changed_policy_is_not_what_was_signed(draft: dict[str, Any], operators: Keys) -> None:
    value = jcs.loads(_signed(draft, operators[:2]))
    value["policy"]["tcb"]["grace_seconds"] = 1
    with pytest.raises(PolicySignaturesInsufficient, match="is not valid"):
        verify(jcs.dumps(value), _public(operators[:3]), 2)


def test_one_operator_cannot_sign_twice(draft: dict[str, Any], operators: Keys) -> None:
    value = jcs.loads(_signed(draft, operators[:1]))
    value["signatures"] *= 2
    with pytest.raises(PolicyMalformed, match="signatures names the same thing twice"):
        verify(jcs.dumps(value), _public(operators[:3]), 2)
    with pytest.raises(PolicyMalformed, match="already"):
        _signed(draft, [operators[0], operators[0]])


@pytest.mark.parametrize("threshold", [0, -1, 3])
def test_a_threshold_that_means_nothing_admits_nothing(draft: dict[str, Any], operators: Keys, threshold: int) -> None:
    with pytest.raises(PolicySignaturesInsufficient, match="admits no policy"):
        verify(_signed(draft, operators[:3]), _public(operators[:2]), threshold)


def test_a_key_repeated_among_the_verifying_ones_counts_once(draft: dict[str, Any], operators: Keys) -> None:
    with pytest.raises(PolicySignaturesInsufficient, match="admits no policy"):
        verify(_signed(draft, operators[:2]), _public([operators[0], operators[0]]), 2)


def test_nobody_signs_what_no_service_will_read(draft: dict[str, Any], operators: Keys) -> None:
    with pytest.raises(PolicyMalformed):
        sign(jcs.dumps({**draft, "extra": 1}), operators[0])


def test_a_seed_for_another_mesh_is_refused(draft: dict[str, Any], operators: Keys) -> None:
    signed = _signed(draft, operators[:2])
    keys = tuple(_public(operators[:3]))
    assert verify_seed(signed, Anchors("kms", "mesh.local", keys, 2)).trust_domain == "mesh.local"
    with pytest.raises(PolicyOfAnotherMesh) as refusal:
        verify_seed(signed, Anchors("kms", "mesh.example.org", keys, 2))
    assert refusal.value.reason == "POLICY_OF_ANOTHER_MESH"


def test_a_seed_may_carry_signatures_of_outgoing_operators_and_they_count_for_nothing(
    draft: dict[str, Any], operators: Keys
) -> None:
    draft["operators"]["keys"] = [key.hex() for key in _public(operators[2:5])]
    anchors = Anchors("kms", "mesh.local", tuple(_public(operators[2:5])), 2)
    rotation = _signed(draft, [operators[0], operators[1], operators[3], operators[4]])
    assert verify_seed(rotation, anchors).version == 1
    assert verify_own(parse_signed(rotation)).version == 1
    lacking = _signed(draft, [operators[0], operators[1], operators[4]])
    with pytest.raises(PolicySignaturesInsufficient, match="signed by 1"):
        verify_seed(lacking, anchors)
    with pytest.raises(PolicySignaturesInsufficient, match="signed by 1"):
        verify_own(parse_signed(lacking))


def test_a_seeds_signature_by_a_measured_operator_must_be_valid(draft: dict[str, Any], operators: Keys) -> None:
    value = jcs.loads(_signed(draft, operators[:3]))
    value["signatures"][2]["signature"] = value["signatures"][1]["signature"]
    with pytest.raises(PolicySignaturesInsufficient, match="is not valid"):
        verify_seed(jcs.dumps(value), Anchors("kms", "mesh.local", tuple(_public(operators[:3])), 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "extra is not a known member"),
        ({"signatures": None}, "signatures must be a list"),
        ({"signatures": [{"key": "ab" * 32}]}, r"signatures\[0\].signature is missing"),
        ({"signatures": [{"key": "ab" * 32, "signature": "ab" * 64, "by": ""}]}, r"signatures\[0\].by"),
        ({"policy": []}, "must be an object"),
    ],
)
def test_the_signed_form_is_read_strictly(draft: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyMalformed, match=message):
        parse_signed(jcs.dumps({"policy": draft, "signatures": [], **change}))


@given(data=st.binary(max_size=200))
def test_hostile_bytes_raise_only_the_refusal(data: bytes) -> None:
    with pytest.raises(PolicyMalformed):
        verify(data, [b"k" * 32], 1)
