"""A node whose weights are not its manifest's ends, names the file, and is listed nowhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from libs.process import tethered
from libs.weights import packaged_weights
from tests.fakes.ports import free_port
from tests.mesh.https import Https
from tests.mesh.nodes import another_node
from tests.mesh.running import ROOT, RunningMesh, short_folder, teemesh

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300)]

INSTANCE = "node-9"
WAIT_SECONDS = 100


def node_that_ends(mesh: RunningMesh, folder: Path, weights: Path) -> subprocess.CompletedProcess[str]:
    """Run a node as the mesh's own, manifest and all, but with these weights, until it ends."""
    address = f"127.0.0.1:{free_port()}"
    config = tomllib.loads((mesh.state / "config" / "node.toml").read_text())
    config["member"] |= {"instance": INSTANCE, "listen": address, "state_dir": str(folder / "state")}
    config["endpoint"] = address
    config["engine"]["weights"] = str(weights)
    (folder / "node.toml").write_text(tomli_w.dumps(config))
    command = tethered([sys.executable, "-m", "services.node", str(folder / "node.toml")])
    return subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )


def is_listed(mesh: RunningMesh) -> bool:
    listed = teemesh("providers", "list", "--json", "--mesh", str(mesh.state / "mesh.json"))
    assert "local" in listed.stdout, listed.stderr
    return INSTANCE in listed.stdout


def test_a_node_with_one_flipped_bit_in_a_file_names_it_and_is_not_listed(mesh: RunningMesh, https: Https) -> None:
    with short_folder() as folder:
        weights = folder / packaged_weights().name
        shutil.copyfile(packaged_weights(), weights)
        flip(weights)
        ended = node_that_ends(mesh, folder, weights)
        assert ended.returncode == 1, ended.stdout + ended.stderr
        assert f"WEIGHTS_DIFFER: not the weights of the manifest: {weights.name} has SHA-256 " in ended.stderr
        assert not is_listed(mesh)
        # It was this bit alone.
        flip(weights)
        with another_node(mesh, https, folder, INSTANCE, weights=str(weights)):
            assert is_listed(mesh)


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        (byte,) = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))
