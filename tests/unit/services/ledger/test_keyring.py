"""The keyring's file: whole, encrypted, of one log, and never silently another."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.keyring import NAME, Keyring, KeyringFile, VaultShares

LOG_ID = b"\x01" * 32
KEY = b"\x02" * 32
KEYRING = Keyring(
    3,
    (
        VaultShares(b"\x0a" * 16, "ab" * 16, b"\x0b" * 32, {671: b"\x0c" * 32, 672: b"\x0d" * 32}),
        VaultShares(b"\x1a" * 16, "cd" * 16, b"\x1b" * 32, {672: b"\x1c" * 32}),
    ),
)


@pytest.fixture
def file(tmp_path: Path) -> KeyringFile:
    stored = KeyringFile(tmp_path, LOG_ID)
    stored.store(KEYRING, KEY, 7)
    return stored


def test_what_was_stored_is_loaded(file: KeyringFile) -> None:
    assert file.key_epoch() == 7
    assert file.load(KEY) == KEYRING


def test_without_a_file_the_keyring_is_empty(tmp_path: Path) -> None:
    file = KeyringFile(tmp_path, LOG_ID)
    assert file.key_epoch() is None
    assert file.load(KEY) == Keyring(0, ())


def test_shares_are_not_on_disk_in_clear(tmp_path: Path, file: KeyringFile) -> None:
    data = (tmp_path / NAME).read_bytes()
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    for vault in KEYRING.vaults:
        assert vault.tenant.encode() not in data
        assert vault.tag_share.hex().encode() not in data


def test_a_change_of_any_byte_is_damage(tmp_path: Path, file: KeyringFile) -> None:
    path = tmp_path / NAME
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(LogDamaged) as damage:
            file.load(KEY)
        assert damage.value.exit_status == 3


def test_a_cut_file_is_damage(tmp_path: Path, file: KeyringFile) -> None:
    path = tmp_path / NAME
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(LogDamaged):
            file.load(KEY)


def test_another_logs_keyring_is_damage(tmp_path: Path, file: KeyringFile) -> None:
    with pytest.raises(LogDamaged):
        KeyringFile(tmp_path, b"\x09" * 32).load(KEY)


def test_another_key_is_damage(file: KeyringFile) -> None:
    with pytest.raises(LogDamaged):
        file.load(bytes(32))


def test_every_writing_is_sealed_anew(tmp_path: Path, file: KeyringFile) -> None:
    before = (tmp_path / NAME).read_bytes()
    file.store(KEYRING, KEY, 7)
    assert (tmp_path / NAME).read_bytes() != before
