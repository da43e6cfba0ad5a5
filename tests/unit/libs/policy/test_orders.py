from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.errors import MeshError
from libs.policy.document import Policy, parse
from libs.policy.orders import (
    RETIRE_KEY,
    Order,
    SignedOrder,
    parse_order,
    require_retirable,
    valid_signers,
    verify_order,
)

NOW = 1000
ORDER = Order("mesh.local", RETIRE_KEY, "models/a", NOW + 60)


@pytest.fixture
def policy(draft: dict[str, Any]) -> Policy:
    return parse(jcs.dumps(draft))


def signed(*keys: Ed25519PrivateKey, order: Order = ORDER) -> SignedOrder:
    document = SignedOrder(order)
    for key in keys:
        document = document.signed_by(key)
    return document


def reason(document: bytes, policy: Policy, *, action: str = RETIRE_KEY, now: float = NOW) -> str:
    with pytest.raises(MeshError) as refusal:
        verify_order(document, action, policy, now)
    return refusal.value.reason


def test_enough_operators_make_an_order(operators: list[Ed25519PrivateKey], policy: Policy) -> None:
    for signers in (operators[:2], operators[1:3], operators[:3]):
        assert verify_order(signed(*signers).document, RETIRE_KEY, policy, NOW) == ORDER


def test_too_few_strangers_and_copies_do_not(operators: list[Ed25519PrivateKey], policy: Policy) -> None:
    one = signed(operators[0])
    assert reason(one.document, policy) == "ORDER_SIGNATURES_INSUFFICIENT"
    assert reason(signed(*operators[:2], Ed25519PrivateKey.generate()).document, policy) == (
        "ORDER_SIGNATURES_INSUFFICIENT"
    )
    twice = SignedOrder(ORDER, one.signatures * 2)
    assert reason(twice.document, policy) == "ORDER_MALFORMED"
    other = signed(operators[1], order=Order("mesh.local", RETIRE_KEY, "models/b", NOW + 60))
    moved = SignedOrder(ORDER, (*one.signatures, *other.signatures))
    assert reason(moved.document, policy) == "ORDER_SIGNATURES_INSUFFICIENT"


def test_an_order_is_for_one_mesh_and_one_time(operators: list[Ed25519PrivateKey], policy: Policy) -> None:
    elsewhere = signed(*operators[:2], order=Order("mesh.other", RETIRE_KEY, "models/a", NOW + 60))
    assert reason(elsewhere.document, policy) == "ORDER_OF_ANOTHER_KIND"
    assert reason(signed(*operators[:2]).document, policy, action="another") == "ORDER_OF_ANOTHER_KIND"
    assert verify_order(signed(*operators[:2]).document, RETIRE_KEY, policy, NOW + 59.9) == ORDER
    assert reason(signed(*operators[:2]).document, policy, now=NOW + 60) == "ORDER_EXPIRED"


def test_what_is_signed_cannot_be_changed(operators: list[Ed25519PrivateKey], policy: Policy) -> None:
    document = jcs.loads_object(signed(*operators[:2]).document)
    for member, value in (("subject", "models/b"), ("not_after", NOW + 6000)):
        altered = {**document, "order": {**document["order"], member: value}}
        assert reason(jcs.dumps(altered), policy) == "ORDER_SIGNATURES_INSUFFICIENT"


def test_nobody_signs_twice(operators: list[Ed25519PrivateKey]) -> None:
    with pytest.raises(MeshError, match="has one by"):
        signed(operators[0], operators[0])


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"order":{},"signatures":[]}',
        jcs.dumps({"order": {**jcs.loads_object(ORDER.document), "action": "anything"}, "signatures": []}),
        jcs.dumps({"order": {**jcs.loads_object(ORDER.document), "subject": ""}, "signatures": []}),
        jcs.dumps({"order": {**jcs.loads_object(ORDER.document), "subject": "a b"}, "signatures": []}),
        jcs.dumps({"order": {**jcs.loads_object(ORDER.document), "v": 2}, "signatures": []}),
        jcs.dumps({"order": {**jcs.loads_object(ORDER.document), "more": 1}, "signatures": []}),
        jcs.dumps({"order": jcs.loads_object(ORDER.document), "signatures": [{"key": "00", "signature": "00"}]}),
        jcs.dumps({"order": jcs.loads_object(ORDER.document), "signatures": [], "more": 1}),
        b" " * (64 * 1024 + 1),
    ],
)
def test_what_is_no_order_is_refused(document: bytes) -> None:
    with pytest.raises(MeshError) as refusal:
        parse_order(document)
    assert refusal.value.reason == "ORDER_MALFORMED"


def test_a_signed_order_is_read_as_it_was_written(operators: list[Ed25519PrivateKey]) -> None:
    document = signed(*operators[:2])
    assert parse_order(document.document) == document


def test_only_signatures_over_this_order_count(operators: list[Ed25519PrivateKey]) -> None:
    order = signed(*operators[:2])
    keys = tuple(key for key, _ in order.signatures)
    assert valid_signers(order) == keys
    (_, made), second = order.signatures
    elsewhere = signed(operators[0], order=Order("mesh.local", RETIRE_KEY, "models/b", NOW + 60)).signatures[0]
    for other in (elsewhere, (bytes(32), made), (b"no key", made), (keys[0], second[1])):
        assert valid_signers(SignedOrder(ORDER, (other, second))) == (keys[1],)


@pytest.mark.parametrize("name", ["ledger-keyring", "ledger-resume", "ledger-vault", "ledger-vault/2026-11"])
def test_without_some_keys_there_is_no_log(name: str) -> None:
    with pytest.raises(MeshError) as refusal:
        require_retirable(name)
    assert refusal.value.reason == "KEY_NOT_RETIRABLE"


@pytest.mark.parametrize("name", ["models/a", "ledger-vaults/2026-11", "ledger-keyrings"])
def test_others_can_be_retired(name: str) -> None:
    require_retirable(name)
