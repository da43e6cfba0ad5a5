from __future__ import annotations

import calendar

import pytest

from services.kms.keyring import KeyEpochUnknown, KeyNameMalformed, Keyring

ROOT = bytes(range(32))
OCTOBER_2026 = calendar.timegm((2026, 10, 31, 23, 59, 59))


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(ROOT, lambda: OCTOBER_2026)


def test_keys_depend_on_root_name_epoch_and_purpose_and_on_nothing_else(keyring: Keyring) -> None:
    key = keyring.symmetric("a", 1)
    assert key == Keyring(ROOT).symmetric("a", 1)
    others = {
        keyring.symmetric("b", 1),
        keyring.symmetric("a", 2),
        Keyring(bytes(32)).symmetric("a", 1),
        keyring.signing("a", 1).private_numbers().private_value.to_bytes(32, "big"),
    }
    assert len(others | {key}) == 5


def test_the_derivation_is_what_it_was() -> None:
    """Every sealed entry of a log hangs on it: a change here is the loss of all of them."""
    keyring = Keyring(ROOT)
    assert (
        keyring.symmetric("ledger-keyring", 1).hex()
        == "129908d4de0dd46498eca5cef243a25cec0c6f9b4233ca7f62f1bd977442c97d"
    )
    assert (
        f"{keyring.signing('mesh-ca', 1).private_numbers().private_value:064x}"
        == "e49749d974049ca980df1596a98788f8c1b3c888540c3fd6ecf6a926477e1189"
    )


def test_parts_that_run_into_their_neighbours_do_not_collide(keyring: Keyring) -> None:
    """Without length prefixes these would be the same bytes, their parts cut elsewhere."""
    one = keyring._derive("a", 0x62000000, "release", "aes-256", 32)
    assert one != keyring._derive("ab", ord("r"), "elease", "aes-256", 32)
    assert one != keyring._derive("a", 0x62000000, "releaseaes", "-256", 32)


def test_vault_keys_have_an_epoch_each_month(keyring: Keyring) -> None:
    october = (2026 - 1970) * 12 + 10
    assert keyring.resolve("ledger-vault/acme", 0) == october
    assert keyring.resolve("ledger-vault/acme", october - 7) == october - 7
    with pytest.raises(KeyEpochUnknown):
        keyring.resolve("ledger-vault/acme", october + 1)
    assert Keyring(ROOT, lambda: OCTOBER_2026 + 1).resolve("ledger-vault/acme", 0) == october + 1


def test_every_other_key_has_its_first_epoch(keyring: Keyring) -> None:
    assert keyring.resolve("ledger-keyring", 0) == keyring.resolve("ledger-keyring", 1) == 1
    with pytest.raises(KeyEpochUnknown):
        keyring.resolve("ledger-keyring", 2)


@pytest.mark.parametrize("name", ["", "A", "a//b", "/a", "a/", "a/*", "../a", "a\n", "a" * 129, "é"])
def test_what_is_no_key_name_is_refused(keyring: Keyring, name: str) -> None:
    with pytest.raises(KeyNameMalformed):
        keyring.resolve(name, 1)
