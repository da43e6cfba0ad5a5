from __future__ import annotations

from typing import Any

import pytest

from libs import jcs
from libs.policy.document import PolicyMalformed, parse
from libs.policy.releases import KeyAlgorithm, KeyRelease, is_boot_class

COMPOSE = "ab" * 32


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
    rule = parse(jcs.dumps(draft)).key_release(name)
    assert (rule is not None and rule.admits(role, COMPOSE)) is allowed


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


def test_a_rule_without_further_members_is_for_symmetric_keys_that_are_held(draft: dict[str, Any]) -> None:
    rule = parse(jcs.dumps(draft)).key_release("data/a")
    assert rule == KeyRelease("data/*", frozenset({"node", "router"}), KeyAlgorithm.AES_256, True, None, None)


def test_a_rule_says_what_a_key_is_for_and_who_holds_it(draft: dict[str, Any]) -> None:
    draft["key_releases"] = [
        {
            "name": "agents/*",
            "roles": ["node"],
            "algorithm": "ed25519",
            "use": "sign",
            "rotate_after_days": 30,
            "compose_hashes": [COMPOSE],
        }
    ]
    rule = parse(jcs.dumps(draft)).key_release("agents/claims")
    assert rule == KeyRelease("agents/*", frozenset({"node"}), KeyAlgorithm.ED25519, False, 30, frozenset({COMPOSE}))
    assert rule.admits("node", COMPOSE)
    assert not rule.admits("node", "cd" * 32)
    assert not rule.admits("router", COMPOSE)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("data/*", "data/*"),
        ("data/*", "data/a"),
        ("data/a", "data/*"),
        ("data/a/*", "data/*"),
        ("data/*", "data/a/b/*"),
        ("data/a", "data/a"),
    ],
)
def test_two_rules_about_one_key_are_refused(draft: dict[str, Any], first: str, second: str) -> None:
    draft["key_releases"] = [{"name": first, "roles": ["node"]}, {"name": second, "roles": ["router"]}]
    with pytest.raises(PolicyMalformed, match=r"key_releases\[1\].name is about the same keys"):
        parse(jcs.dumps(draft))


def test_rules_about_neighbours_are_not_about_one_key(draft: dict[str, Any]) -> None:
    names = ["data/*", "data", "database/*", "a/b", "a/bc"]
    draft["key_releases"] = [{"name": name, "roles": ["node"]} for name in names]
    assert len(parse(jcs.dumps(draft)).key_releases) == len(names)


@pytest.mark.parametrize(
    ("changes", "member"),
    [
        ({"algorithm": "aes-128"}, "algorithm"),
        ({"algorithm": None}, "algorithm"),
        ({"use": "lend"}, "use"),
        ({"use": "sign"}, "use"),  # Of an AES key.
        ({"use": "sign", "algorithm": "x25519"}, "use"),
        ({"rotate_after_days": 0}, "rotate_after_days"),
        ({"compose_hashes": []}, "compose_hashes"),
        ({"compose_hashes": ["ab"]}, "compose_hashes"),
        ({"measurement": COMPOSE}, "measurement"),
        ({"name": "ledger-keyring", "roles": ["ledger"], "algorithm": "x25519"}, "name"),
        ({"name": "ledger-vault/*", "roles": ["ledger"], "rotate_after_days": 1}, "name"),
    ],
)
def test_a_rule_that_says_nothing_sensible_is_refused(
    draft: dict[str, Any], changes: dict[str, Any], member: str
) -> None:
    draft["key_releases"] = [{"name": "data/*", "roles": ["node"], **changes}]
    with pytest.raises(PolicyMalformed, match=rf"key_releases\[0\].{member}"):
        parse(jcs.dumps(draft))
