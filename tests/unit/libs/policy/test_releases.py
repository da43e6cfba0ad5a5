from __future__ import annotations

from typing import Any

import pytest

from libs import jcs
from libs.policy.document import PolicyMalformed, parse
from libs.policy.releases import is_boot_class


@pytest.mark.parametrize(
    ("name", "role", "allowed"),
    [
        ("ledger-keyring", "ledger", True),
        ("ledger-keyring", "kms", False),
        ("ledger-keyring/x", "ledger", False),
        ("ledger-resume", "ledger", False),
        ("ledger-vault/2026-01", "ledger", True),
        ("ledger-vault/a/b", "ledger", True),
        ("ledger-vault/a", "router", False),
        ("ledger-vault", "ledger", False),
        ("ledger-vault/", "ledger", False),
        ("ledger-vault/*", "ledger", False),
        ("ledger-vault/../x", "ledger", False),
        ("ledger-vaults/a", "ledger", False),
        ("data/a", "node", True),
        ("data/a", "router", True),
        ("data/a", "ledger", False),
        ("DATA/a", "node", False),
        ("data/a\n", "node", False),
        ("data/" + "a" * 124, "node", False),
        ("", "node", False),
    ],
)
def test_a_key_is_released_by_exact_name_or_below_a_wildcard(
    draft: dict[str, Any], name: str, role: str, allowed: bool
) -> None:
    assert parse(jcs.dumps(draft)).may_release(name, role) is allowed


@pytest.mark.parametrize(
    "name", ["ledger-keyring", "ledger-resume", "ledger-vault/*", "ledger-vault/a", "ledger-vault/a/*"]
)
@pytest.mark.parametrize("roles", [["router"], ["ledger", "kms"]])
def test_boot_class_keys_are_the_ledgers_alone(draft: dict[str, Any], name: str, roles: list[str]) -> None:
    draft["key_releases"] = [{"name": name, "roles": roles}]
    with pytest.raises(PolicyMalformed, match=r"key_releases\[0\].roles"):
        parse(jcs.dumps(draft))


def test_boot_class_is_told_by_name() -> None:
    assert is_boot_class("ledger-vault/2026-01")
    assert is_boot_class("ledger-resume")
    assert not is_boot_class("ledger-vaults/2026-01")
    assert not is_boot_class("data/ledger-keyring")
