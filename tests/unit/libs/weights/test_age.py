"""Keys as age writes them, and files that its own implementations open."""

from __future__ import annotations

import io
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from libs.weights import Manifest, WeightsMissing, measure
from libs.weights.age import WeightsNotOpened, identity_of, open_sealed, recipient_of, seal

SECRET = bytes(range(32))


@pytest.mark.parametrize("secret", [SECRET, b"\xff" * 32, b"\x00" * 31 + b"\x01"])
def test_keys_are_as_age_writes_them(secret: bytes) -> None:
    """Its own library reads the private one, and has the same public one for it."""
    key = X25519PrivateKey.from_private_bytes(secret)
    identity = pyrage.x25519.Identity.from_str(identity_of(key))
    assert str(identity.to_public()) == recipient_of(key.public_key())
    assert str(identity) == identity_of(key)


@pytest.fixture
async def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "plain" / "sub").mkdir(parents=True)
    (tmp_path / "plain" / "model").write_bytes(b"weights" * 100_000)
    (tmp_path / "plain" / "sub" / "empty").write_bytes(b"")
    return (await measure(tmp_path / "plain")).manifest


async def test_what_is_sealed_is_opened(tmp_path: Path, manifest: Manifest) -> None:
    key = X25519PrivateKey.from_private_bytes(SECRET)
    await seal(tmp_path / "plain", manifest, tmp_path / "sealed", key.public_key())
    await open_sealed(tmp_path / "sealed", manifest, tmp_path / "opened", key)
    assert (await measure(tmp_path / "opened")).manifest == manifest
    with pytest.raises(WeightsNotOpened, match=r"^(model|sub/empty)\.age does not open"):
        await open_sealed(tmp_path / "sealed", manifest, tmp_path / "opened", X25519PrivateKey.generate())


async def test_a_single_file_is_sealed_under_its_name(tmp_path: Path) -> None:
    path, key = tmp_path / "model.gguf", X25519PrivateKey.from_private_bytes(SECRET)
    path.write_bytes(b"weights")
    await seal(path, (await measure(path)).manifest, tmp_path / "sealed", key.public_key())
    opened = io.BytesIO()
    with (tmp_path / "sealed" / "model.gguf.age").open("rb") as sealed:
        pyrage.decrypt_io(sealed, opened, [pyrage.x25519.Identity.from_str(identity_of(key))])
    assert opened.getvalue() == b"weights"


async def test_what_is_not_there_is_neither_sealed_nor_opened(tmp_path: Path, manifest: Manifest) -> None:
    key = X25519PrivateKey.from_private_bytes(SECRET)
    with pytest.raises(WeightsMissing):
        await seal(tmp_path / "elsewhere", manifest, tmp_path / "sealed", key.public_key())
    with pytest.raises(WeightsMissing, match=r"model\.age is missing"):
        await open_sealed(tmp_path / "nowhere", manifest, tmp_path / "opened", key)
