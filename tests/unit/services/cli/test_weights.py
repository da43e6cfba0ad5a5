from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.inputs import InputUnreadable
from services.cli.weights import packaged_weights, weights_digest
from services.node import weights as claimed


async def test_policy_lists_what_a_node_claims(tmp_path: Path) -> None:
    (tmp_path / "model" / "part").mkdir(parents=True)
    (tmp_path / "model" / "b.safetensors").write_bytes(b"weights")
    (tmp_path / "model" / "part" / "a.json").write_bytes(b"{}")
    for path in (tmp_path / "model", tmp_path / "model" / "b.safetensors"):
        assert weights_digest(path) == (await claimed.measure(path)).hex()


def test_the_packaged_model_is_the_one_that_a_node_takes() -> None:
    assert packaged_weights() == claimed.packaged_weights()


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable):
        weights_digest(tmp_path)
    with pytest.raises(InputUnreadable, match="cannot read"):
        weights_digest(tmp_path / "nothing")
