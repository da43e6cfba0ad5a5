"""Orders about vaults: who may give them, what they name, and what no order can be passed off as."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.errors import MeshError
from libs.policy.document import Policy, parse
from libs.policy.orders import (
    ERASE_VAULT,
    GIVE_TAG_KEY,
    HOLD_VAULT,
    RELEASE_VAULT,
    RETIRE_KEY,
    Order,
    SignedOrder,
)
from libs.policy.vault_orders import (
    TagKeyGift,
    VaultPart,
    epoch_of,
    month_of,
    vault_part,
    verify_erasure,
    verify_hold,
    verify_retirement,
    verify_tag_key_gift,
)

NOW = 1000
VAULT = "0a" * 16
WHOLE, MARCH = VaultPart(b"\x0a" * 16, None), VaultPart(b"\x0a" * 16, (2026 - 1970) * 12 + 3)


@pytest.fixture
def policy(draft: dict[str, Any]) -> Policy:
    return parse(jcs.dumps(draft))


def signed(*keys: Ed25519PrivateKey, action: str = ERASE_VAULT, subject: str = VAULT, **changes: Any) -> bytes:
    given = {"trust_domain": "mesh.local", "action": action, "subject": subject, "not_after": NOW + 60}
    document = SignedOrder(Order(**{**given, **changes}))
    for key in keys:
        document = document.signed_by(key)
    return document.document


def reason(verify: Any, *arguments: Any) -> str:
    with pytest.raises(MeshError) as refusal:
        verify(*arguments)
    return refusal.value.reason


def test_enough_operators_or_the_tenant_administrator_erase(
    operators: list[Ed25519PrivateKey], tenant_admin: Ed25519PrivateKey, policy: Policy
) -> None:
    for signers in (operators[:2], operators[:3], [tenant_admin]):
        assert verify_erasure(signed(*signers), policy, NOW) == WHOLE
    assert verify_erasure(signed(tenant_admin, subject=f"{VAULT},2026-03"), policy, NOW) == MARCH


def test_nobody_else_does(operators: list[Ed25519PrivateKey], tenant_admin: Ed25519PrivateKey, policy: Policy) -> None:
    stranger = Ed25519PrivateKey.generate()
    for signers in ([], operators[:1], [stranger], [*operators[:2], stranger], [operators[0], tenant_admin]):
        assert reason(verify_erasure, signed(*signers), policy, NOW) == "ORDER_SIGNATURES_INSUFFICIENT"
    two = operators[:2]
    assert reason(verify_erasure, signed(*two, not_after=NOW), policy, NOW) == "ORDER_EXPIRED"
    assert reason(verify_erasure, signed(tenant_admin, not_after=NOW), policy, NOW) == "ORDER_EXPIRED"
    for changes in ({"trust_domain": "mesh.other"}, {"action": HOLD_VAULT}, {"action": RETIRE_KEY}):
        for signers in (two, [tenant_admin]):
            assert reason(verify_erasure, signed(*signers, **changes), policy, NOW) == "ORDER_OF_ANOTHER_KIND"


def test_an_administrator_who_is_an_operator_too_erases_nothing_alone(
    operators: list[Ed25519PrivateKey], draft: dict[str, Any]
) -> None:
    both = {**draft, "tenant_admin_key": operators[0].public_key().public_bytes_raw().hex()}
    policy = parse(jcs.dumps(both))
    assert reason(verify_erasure, signed(operators[0]), policy, NOW) == "ORDER_SIGNATURES_INSUFFICIENT"
    assert verify_erasure(signed(*operators[:2]), policy, NOW) == WHOLE


def test_the_tenant_administrators_signature_over_another_order_erases_nothing(
    tenant_admin: Ed25519PrivateKey, policy: Policy
) -> None:
    value = jcs.loads_object(signed(tenant_admin))
    value["order"]["subject"] = "0b" * 16
    assert reason(verify_erasure, jcs.dumps(value), policy, NOW) == "ORDER_SIGNATURES_INSUFFICIENT"


@pytest.mark.parametrize("action", [HOLD_VAULT, RELEASE_VAULT])
def test_holds_take_operators(
    operators: list[Ed25519PrivateKey], tenant_admin: Ed25519PrivateKey, policy: Policy, action: str
) -> None:
    assert verify_hold(signed(*operators[:2], action=action), action, policy, NOW) == WHOLE
    for signers in ([tenant_admin], operators[:1]):
        document = signed(*signers, action=action)
        assert reason(verify_hold, document, action, policy, NOW) == "ORDER_SIGNATURES_INSUFFICIENT"
    month = signed(*operators[:2], action=action, subject=f"{VAULT},2026-03")
    assert reason(verify_hold, month, action, policy, NOW) == "VAULT_SUBJECT_MALFORMED"


@pytest.mark.parametrize(
    "subject",
    ["none", "0A" * 16, "0a" * 15, "00" * 16, f"{VAULT},", f"{VAULT},2026-13", f"{VAULT},2026-00", f"{VAULT},1969-12"],
)
def test_what_is_no_vault_is_refused(subject: str) -> None:
    order = Order("mesh.local", ERASE_VAULT, subject, NOW)
    assert reason(vault_part, order) == "VAULT_SUBJECT_MALFORMED"


def test_an_order_to_erase_a_vault_ends_its_key_and_one_for_a_month_ends_none(
    operators: list[Ed25519PrivateKey], tenant_admin: Ed25519PrivateKey, policy: Policy
) -> None:
    for signers in (operators[:2], [tenant_admin]):
        assert verify_retirement(signed(*signers), policy, NOW) == f"ledger-vault/{VAULT}"
        month = signed(*signers, subject=f"{VAULT},2026-03")
        assert reason(verify_retirement, month, policy, NOW) == "ORDER_OF_ANOTHER_KIND"
    assert verify_retirement(signed(*operators[:2], action=RETIRE_KEY, subject="models/a"), policy, NOW) == "models/a"
    plain = signed(*operators[:2], action=RETIRE_KEY, subject=f"ledger-vault/{VAULT}")
    assert reason(verify_retirement, plain, policy, NOW) == "KEY_NOT_RETIRABLE"
    held = signed(*operators[:2], action=HOLD_VAULT)
    assert reason(verify_retirement, held, policy, NOW) == "ORDER_OF_ANOTHER_KIND"
    models = signed(tenant_admin, action=RETIRE_KEY, subject="models/a")
    assert reason(verify_retirement, models, policy, NOW) == "ORDER_SIGNATURES_INSUFFICIENT"


def test_a_reason_is_signed_with_the_order_and_one_without_is_as_it_always_was(
    operators: list[Ed25519PrivateKey], policy: Policy
) -> None:
    assert b"reason" not in signed()
    value = jcs.loads_object(signed(*operators[:2], reason="request 7 of the tenant"))
    assert verify_erasure(jcs.dumps(value), policy, NOW) == WHOLE
    value["order"]["reason"] = "no request"
    assert reason(verify_erasure, jcs.dumps(value), policy, NOW) == "ORDER_SIGNATURES_INSUFFICIENT"
    for malformed in ("", "\n", "x" * 257, 7):
        value["order"]["reason"] = malformed
        assert reason(verify_erasure, jcs.dumps(value), policy, NOW) == "ORDER_MALFORMED"


def test_months_are_written_as_they_are_counted() -> None:
    assert (month_of(1), month_of(12), month_of(13)) == ("1970-01", "1970-12", "1971-01")
    assert all(epoch_of(month_of(epoch)) == epoch for epoch in range(1, 1200))
    assert vault_part(Order("mesh.local", ERASE_VAULT, MARCH.subject, NOW)) == MARCH


def test_enough_operators_or_the_tenant_administrator_give_a_tag_key_to_one_public_key(
    operators: list[Ed25519PrivateKey], tenant_admin: Ed25519PrivateKey, policy: Policy
) -> None:
    gift = TagKeyGift(WHOLE.vault_id, b"\x0b" * 32)
    for signers in (operators[:2], operators[:3], [tenant_admin]):
        order = signed(*signers, action=GIVE_TAG_KEY, subject=gift.subject)
        assert verify_tag_key_gift(order, policy, NOW) == gift
    for few in ([], operators[:1], [operators[0], tenant_admin], [Ed25519PrivateKey.generate()]):
        order = signed(*few, action=GIVE_TAG_KEY, subject=gift.subject)
        assert reason(verify_tag_key_gift, order, policy, NOW) == "ORDER_SIGNATURES_INSUFFICIENT"
    for action in (ERASE_VAULT, HOLD_VAULT):
        order = signed(*operators[:2], action=action, subject=gift.subject)
        assert reason(verify_tag_key_gift, order, policy, NOW) == "ORDER_OF_ANOTHER_KIND"
    receiver = gift.receiver.hex()
    for subject in (VAULT, f"{VAULT},{receiver[1:]}", f"{'00' * 16},{receiver}", f"{VAULT},2026-03"):
        order = signed(*operators[:2], action=GIVE_TAG_KEY, subject=subject)
        assert reason(verify_tag_key_gift, order, policy, NOW) == "VAULT_SUBJECT_MALFORMED"
