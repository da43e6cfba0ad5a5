"""Weights that come encrypted: a node of the right measurement serves them from memory, one of another gets no key, and
on no disk do they lie in the clear.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from libs import jcs
from libs.policy.compose import compose_hash
from libs.weights import packaged_weights, read_manifest
from services.cli.mesh.layout import Layout
from tests.faults.load import Reply, open_client
from tests.mesh.effects import verified_receipt
from tests.mesh.https import Https
from tests.mesh.nodes import AnotherNode, another_node, node_command
from tests.mesh.operating import publish
from tests.mesh.running import ROOT, RunningMesh, running_mesh, short_folder, teemesh

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(400)]

MINE, OTHERS = "weights/mine", "weights/others"
END_SECONDS = 120
_RUNS, _RUN_BYTES = 24, 64
_SHARED = "teemesh-*"
"""What may lie in everybody's temporary folder, whatever a node is told."""


@dataclass(frozen=True, slots=True)
class SealedModel:
    """The packaged model, encrypted to a key of this measurement and to one of another, as operators do it."""

    mesh: RunningMesh
    folder: Path
    digest: str
    """Of the weights, as policy lists them."""

    def settings(self, key: str, opened: Path) -> dict[str, Any]:
        """Of a node's engine."""
        sealed = {"folder": str(self.folder / key), "key": key, "epoch": 1}
        return {"weights": str(opened), "manifest": str(self.folder / "manifest.json"), "sealed": sealed}


@pytest.fixture(scope="module")
def environment() -> Iterator[Mapping[str, str]]:
    with short_folder() as folder:
        home, temporary = folder / "home", folder / "tmp"
        home.mkdir()
        temporary.mkdir()
        yield {"HOME": str(home), "TMPDIR": str(temporary)}


@pytest.fixture(scope="module")
def mesh(environment: Mapping[str, str]) -> Iterator[RunningMesh]:
    with short_folder() as folder, running_mesh(folder, environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def model(mesh: RunningMesh) -> Iterator[SealedModel]:
    with short_folder() as folder:
        composes = {MINE: "node", OTHERS: "router"}
        hashes = {name: compose_hash(Layout(mesh.state).compose(role).read_bytes()) for name, role in composes.items()}
        rules = jcs.loads_object(mesh.file("policy"))["policy"]["key_releases"]
        rules += [
            {"name": name, "roles": ["node"], "algorithm": "x25519", "compose_hashes": [measured]}
            for name, measured in hashes.items()
        ]
        publish(mesh, {"key_releases": rules}, folder)
        plain, manifest = str(packaged_weights()), folder / "manifest.json"
        done(teemesh("weights", "manifest", plain, "--out", str(manifest)))
        (folder / "weights").mkdir()
        for name in composes:
            pem = folder / f"{composes[name]}.pem"
            pem.write_text(done(mesh.run("kms", "public-key", name)))
            done(teemesh("weights", "seal", plain, "--key", str(pem), "--out", str(folder / name)))
        yield SealedModel(mesh, folder, read_manifest(manifest.read_bytes()).digest.hex())


@pytest.fixture
def in_memory() -> Iterator[Path]:
    folder = tempfile.mkdtemp(dir="/dev/shm")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
def https(mesh: RunningMesh) -> Https:
    described = mesh.mesh
    return Https(described["router_url"], described["router_ca"], described["api_key"])


def done(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_node_of_another_measurement_gets_no_key_and_starts_no_engine(
    mesh: RunningMesh, model: SealedModel, environment: Mapping[str, str], in_memory: Path
) -> None:
    with short_folder() as folder:
        command = node_command(mesh, folder, "another", **model.settings(OTHERS, in_memory / "model"))
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=END_SECONDS,
            check=False,
        )
        assert ended.returncode == 1, ended.stdout + ended.stderr
        assert "KEY_NOT_ALLOWED" in ended.stdout + ended.stderr
        # It ended before it made the folder of an engine's socket.
        assert (folder / "state").is_dir()
        assert not (folder / "state" / "engine").exists()
        assert holders(folder, Path(environment["TMPDIR"])) == set()
    assert os.listdir(in_memory) == []


async def test_the_right_one_serves_from_memory_and_no_disk_has_the_weights(
    mesh: RunningMesh, model: SealedModel, environment: Mapping[str, str], in_memory: Path, https: Https
) -> None:
    opened = in_memory / "model" / packaged_weights().name
    with (
        short_folder() as folder,
        another_node(mesh, https, folder, environment=environment, **model.settings(MINE, in_memory / "model")) as node,
    ):
        assert str(opened) in arguments_of_engine(node)
        session = node.session()
        assert session is not None
        asked = node.question(session, max_tokens=4)
        async with open_client(mesh.mesh) as client:
            reply = await client.follow(asked, Reply(stream=False))
            assert reply.status == 200
            with short_folder() as reading:
                events = await verified_receipt(mesh, client, asked, reply, reading)
        assert events["teemesh.node"]["weights_sha256"] == model.digest
        own = {each["type"]: each for each in json.loads(events["teemesh.node"]["receipt"])["event_log"]}
        assert own["teemesh.generation"]["weights_sha256"] == model.digest

        everywhere = [
            *(mesh.state, folder, model.folder, *map(Path, environment.values())),
            *shared(),
        ]
        assert holders(*everywhere) == set()
        # The search finds what is there, wherever and however little of it.
        assert holders(in_memory) == {opened}
        assert holders(packaged_weights().parent) == {packaged_weights()}
        controls = {place / "control" for place in everywhere[:5]}
        for control, run in zip(sorted(controls), runs()[::5], strict=True):
            control.write_bytes(b"before " + run + b" after")
        assert holders(*everywhere) == controls
        for control in controls:
            control.unlink()


def shared() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(_SHARED))


def arguments_of_engine(node: AnotherNode) -> list[str]:
    pid = node.engine
    assert pid is not None
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def runs() -> list[bytes]:
    """Short runs from all over the weights, each so varied that it stands nowhere else."""
    plain = packaged_weights().read_bytes()
    found = []
    for start in range(0, len(plain) - _RUN_BYTES, len(plain) // _RUNS):
        at = start
        while len(set(plain[at : at + _RUN_BYTES])) < _RUN_BYTES // 2:
            at += _RUN_BYTES
        found.append(plain[at : at + _RUN_BYTES])
    return found


def holders(*places: Path) -> set[Path]:
    """The files below these places that have a run of the weights."""
    files = {path for place in places for path in place.rglob("*") if path.is_file()}
    assert files
    wanted = runs()
    return {path for path in files if _has(path, wanted)}


def _has(path: Path, wanted: list[bytes]) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return any(content.find(run) >= 0 for run in wanted)
    except (FileNotFoundError, ValueError):
        return False  # It is gone, or empty.
