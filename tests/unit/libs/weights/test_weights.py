"""Weights have one name: the digest of their manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from libs.weights import WeightsMissing, measure, packaged_weights

PACKAGED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


async def test_one_file_is_named_by_its_manifest(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"abc")
    manifest = (
        b'{"files":[{"name":"model.gguf",'
        b'"sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","size":3}]}'
    )
    assert await measure(path) == hashlib.sha256(manifest).digest()


async def test_every_file_below_a_folder_counts_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "one").write_bytes(b"1")
    before = await measure(tmp_path)
    (tmp_path / "part" / "one").rename(tmp_path / "part" / "two")
    moved = await measure(tmp_path)
    (tmp_path / "config.json").write_bytes(b"{}")
    assert len({before, moved, await measure(tmp_path)}) == 3


async def test_the_packaged_model_is_the_expected_one() -> None:
    path = packaged_weights()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert (digest, path.stat().st_size) == (PACKAGED_SHA256, 98362432)


async def test_missing_and_empty_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing):
        await measure(tmp_path / "absent.gguf")
    with pytest.raises(WeightsMissing):
        await measure(tmp_path)
