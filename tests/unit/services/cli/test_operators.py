from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.cli.mesh.operators import (
    KeyFileExposed,
    ensure_operators,
    load_key,
    make_key,
    public_key,
    read_public_key,
    read_public_keys,
)
from services.cli.terminal.inputs import InputUnreadable, OutputExists


def test_a_key_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "operators" / "alice.pem"
    key = make_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_key(load_key(path)) == public_key(key)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    make_key(tmp_path / "alice.pem")
    with pytest.raises(OutputExists):
        make_key(tmp_path / "alice.pem")


def test_the_same_folder_gives_the_same_operators(tmp_path: Path) -> None:
    first = [public_key(key) for key in ensure_operators(tmp_path, 3)]
    assert [public_key(key) for key in ensure_operators(tmp_path, 3)] == first
    assert len(set(first)) == 3


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "alice.pem"
    make_key(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileExposed) as refusal:
        load_key(path)
    assert refusal.value.reason == "KEY_FILE_EXPOSED"


def _write(path: Path, pem: bytes) -> Path:
    path.write_bytes(pem)
    path.chmod(0o600)
    return path


def test_what_is_no_ed25519_key_is_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    encrypted = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    for pem, message in ((other, "not an Ed25519 key"), (encrypted, "unencrypted"), (b"text", "unencrypted")):
        with pytest.raises(InputUnreadable, match=message):
            load_key(_write(tmp_path / "key.pem", pem))
    with pytest.raises(InputUnreadable, match="cannot read"):
        load_key(tmp_path / "missing.pem")


def test_a_public_key_is_named_in_hex_or_by_file(tmp_path: Path) -> None:
    key = make_key(tmp_path / "alice.pem")
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path = _write(tmp_path / "alice.pub", public)
    for given in (public_key(key).hex(), str(path), str(tmp_path / "alice.pem")):
        assert read_public_key(given) == public_key(key)
    with pytest.raises(InputUnreadable, match="twice"):
        read_public_keys([str(path), public_key(key).hex()])
    with pytest.raises(InputUnreadable, match="neither"):
        read_public_key(str(_write(tmp_path / "junk", b"junk")))


def test_the_command_makes_a_key_and_names_it(
    tmp_path: Path, teemesh: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "alice.pem"
    assert teemesh("operator-key", str(path), "--new") == 0
    assert teemesh("operator-key", str(path)) == 0
    first, second = capsys.readouterr().out.split()
    assert first == second == public_key(load_key(path)).hex()
