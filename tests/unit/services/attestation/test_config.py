"""The configuration: what it may be left without, and what refuses to start."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.config import ConfigInvalid, load
from services.attestation.config import Config

MEMBER = """
[member]
instance = "1"
trust_domain = "mesh.test"
listen = "127.0.0.1:0"
state_dir = "state"
guest_socket = "guest.sock"
seed_policy = "policy.json"
kms = ["127.0.0.1:1"]
kms_bootstrap = ["127.0.0.1:2"]
attestation_bootstrap = "127.0.0.1:3"
"""
OWN = 'bootstrap_listen = "127.0.0.1:0"\npccs_url = "http://127.0.0.1:4"\n'


def read(folder: Path, more: str = "") -> Config:
    path = folder / "attestation.toml"
    path.write_text(OWN + more + MEMBER)
    return load(path, Config)


def test_a_file_from_before_the_sweep_still_starts(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (config.registry, config.sweep_seconds, config.root_crl_url) == ((), 60.0, "")


@pytest.mark.parametrize("line", ["sweep_seconds = 0.5", "archive_bytes = 1000", 'sweep = "often"'])
def test_what_makes_no_sense_refuses_to_start(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigInvalid):
        read(tmp_path, line + "\n")
