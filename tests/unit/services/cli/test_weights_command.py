"""`teemesh weights`: the digest that policy lists, and whether files are what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from libs.weights import read_manifest
from services.cli.__main__ import main

VECTORS = Path("tests/conformance/vectors/model-signing")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(b"abc")
    (folder / "sub" / "tok").write_bytes(b"x")
    return folder


def test_the_manifest_that_is_written_has_the_digest_that_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "manifest.json"
    assert main(["weights", "manifest", str(model), "--out", str(out)]) == 0
    manifest = read_manifest(out.read_bytes())
    assert capsys.readouterr().out == f"{manifest.digest.hex()}  3 files, 6 bytes\n"
    assert main(["weights", "verify", str(model), "--manifest", str(out)]) == 0
    assert main(["weights", "manifest", str(model), "--out", str(out)]) == 1
    assert "OUTPUT_EXISTS" in capsys.readouterr().err


def test_a_changed_file_is_refused_by_name(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "manifest.json"
    main(["weights", "manifest", str(model), "--out", str(out)])
    (model / "sub" / "tok").write_bytes(b"y")
    assert main(["weights", "verify", str(model), "--manifest", str(out)]) == 1
    assert "WEIGHTS_DIFFER: not the weights of the manifest: sub/tok has SHA-256" in capsys.readouterr().err


def test_a_makers_signature_is_verified(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["weights", "verify", str(model), "--signature", str(VECTORS / "p256.sig")]
    assert main([*asked, "--key", str(VECTORS / "p256.pem")]) == 0
    assert main([*asked, "--key", str(VECTORS / "p384.pem")]) == 1
    assert "MODEL_SIGNATURE_WRONG" in capsys.readouterr().err
    (model / "sub" / "tok").write_bytes(b"y")
    assert main([*asked, "--key", str(VECTORS / "p256.pem")]) == 1
    assert "WEIGHTS_DIFFER: sub/tok has" in capsys.readouterr().err


def test_a_signature_among_the_files_is_not_asked_to_sign_itself(model: Path) -> None:
    (model / "model.sig").write_bytes((VECTORS / "p256.sig").read_bytes())
    asked = ["weights", "verify", str(model), "--signature", str(model / "model.sig")]
    assert main([*asked, "--key", str(VECTORS / "p256.pem")]) == 0


@pytest.mark.parametrize(
    "options",
    [[], ["--key", "k"], ["--signature", "s"], ["--manifest", "absent"]],
    ids=lambda options: "".join(options),
)
def test_what_cannot_be_judged_is_another_status_than_refused(model: Path, options: list[str]) -> None:
    assert main(["weights", "verify", str(model), *options]) == 2


def test_weights_that_are_not_there_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "manifest", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err.startswith("teemesh: WEIGHTS_MISSING: ")


def _public_key(path: Path, key: X25519PrivateKey | Ed25519PrivateKey) -> str:
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return str(path)


def test_weights_are_sealed_whole_or_not_at_all(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, out = _public_key(tmp_path / "key.pem", X25519PrivateKey.generate()), tmp_path / "sealed"
    assert main(["weights", "seal", str(model), "--key", key, "--out", str(out)]) == 0
    sealed = capsys.readouterr().out
    main(["weights", "manifest", str(model)])
    assert capsys.readouterr().out == sealed
    assert sorted(file.name for file in out.rglob("*.age")) == ["config.json.age", "model.safetensors.age", "tok.age"]
    assert main(["weights", "seal", str(model), "--key", key, "--out", str(out)]) == 1
    assert "OUTPUT_EXISTS" in capsys.readouterr().err


def test_weights_are_sealed_to_no_key_of_another_kind(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, out = _public_key(tmp_path / "key.pem", Ed25519PrivateKey.generate()), tmp_path / "sealed"
    assert main(["weights", "seal", str(model), "--key", key, "--out", str(out)]) == 1
    assert "INPUT_UNREADABLE: weights are sealed to an x25519 key" in capsys.readouterr().err
    assert not out.exists()
