from __future__ import annotations

import copy
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.policy.document import Policy, parse
from libs.policy.signatures import PolicySignaturesInsufficient, SignedPolicy, sign
from libs.policy.succession import (
    PolicyNotValidNow,
    PolicyVersionNotNext,
    verify_publication,
    verify_successor,
    verify_valid_at,
)

Keys = list[Ed25519PrivateKey]


def _signed(value: dict[str, Any], keys: Keys) -> bytes:
    document = jcs.dumps(value)
    return SignedPolicy(parse(document), tuple(sign(document, key) for key in keys)).document


@pytest.fixture
def current(draft: dict[str, Any]) -> Policy:
    return parse(jcs.dumps(draft))


@pytest.fixture
def successor(draft: dict[str, Any], current: Policy) -> dict[str, Any]:
    return {**copy.deepcopy(draft), "version": 2, "previous": current.digest.hex()}


def _operators(keys: Keys, threshold: int) -> dict[str, Any]:
    return {"keys": [key.public_key().public_bytes_raw().hex() for key in keys], "threshold": threshold}


def test_the_next_version_follows(current: Policy, successor: dict[str, Any], operators: Keys) -> None:
    assert verify_successor(current, _signed(successor, operators[:2])).version == 2


@pytest.mark.parametrize("change", [{"version": 3}, {"previous": "ab" * 32}, {"trust_domain": "mesh.example.org"}])
def test_what_is_not_next_is_refused(
    current: Policy, successor: dict[str, Any], operators: Keys, change: dict[str, Any]
) -> None:
    with pytest.raises(PolicyVersionNotNext) as refusal:
        verify_successor(current, _signed({**successor, **change}, operators[:2]))
    assert refusal.value.reason == "POLICY_VERSION_NOT_NEXT"


def test_nothing_goes_back(draft: dict[str, Any], successor: dict[str, Any], operators: Keys) -> None:
    newer = parse(jcs.dumps(successor))
    for older in (draft, successor):
        with pytest.raises(PolicyVersionNotNext):
            verify_successor(newer, _signed(older, operators[:2]))


def test_operators_rotate_when_both_sets_reach_their_threshold(
    current: Policy, successor: dict[str, Any], operators: Keys
) -> None:
    successor["operators"] = _operators(operators[2:5], 2)
    signed = _signed(successor, [operators[1], operators[2], operators[3]])
    assert verify_successor(current, signed).operator_threshold == 2


@pytest.mark.parametrize(
    ("signers", "missing"), [((3, 4), "who must approve it"), ((2, 3), "who must approve it"), ((0, 1, 2), "its own")]
)
def test_one_set_alone_cannot_rotate_operators(
    current: Policy, successor: dict[str, Any], operators: Keys, signers: tuple[int, ...], missing: str
) -> None:
    successor["operators"] = _operators(operators[2:5], 2)
    with pytest.raises(PolicySignaturesInsufficient, match=missing):
        verify_successor(current, _signed(successor, [operators[index] for index in signers]))


def test_a_lower_threshold_needs_the_higher_one_once_more(
    current: Policy, successor: dict[str, Any], operators: Keys
) -> None:
    successor["operators"]["threshold"] = 1
    with pytest.raises(PolicySignaturesInsufficient, match="2 are needed"):
        verify_successor(current, _signed(successor, operators[:1]))


def test_validity_includes_its_begin_and_not_its_end(current: Policy) -> None:
    verify_valid_at(current, current.not_before)
    verify_valid_at(current, current.not_after - 1)
    for moment in (current.not_before - 1, current.not_after):
        with pytest.raises(PolicyNotValidNow) as refusal:
            verify_valid_at(current, moment)
        assert refusal.value.reason == "POLICY_NOT_VALID_NOW"


def test_only_a_publication_must_be_valid_now(current: Policy, successor: dict[str, Any], operators: Keys) -> None:
    signed = _signed(successor, operators[:2])
    assert verify_publication(current, signed, current.not_before).version == 2
    assert verify_successor(current, signed).version == 2
    with pytest.raises(PolicyNotValidNow):
        verify_publication(current, signed, current.not_after)
