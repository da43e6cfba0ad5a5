"""No process of a running mesh can be dumped, and no file of it holds what the KMS keeps to itself or has released."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from openai import OpenAI

from libs.config import load
from libs.policy.releases import KeyAlgorithm
from libs.tee.dstack import Guest
from services.kms.config import Config
from services.kms.root import Root, open_root
from tests.fakes.secrets import Secrets, secrets_of_root
from tests.mesh.processes import descendants
from tests.mesh.running import RunningMesh

pytestmark = pytest.mark.mesh

SERVICES = {"devtee", "witness", "attestation", "kms", "broker", "ledger", "registry", "node", "router"}


def released(log: Path) -> Mapping[tuple[str, int], KeyAlgorithm]:
    """The keys that a KMS says it has released: all of a fresh mesh's are AES keys."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return {
        (line["name"], line["epoch"]): KeyAlgorithm.AES_256 for line in lines if line.get("event") == "key released"
    }


async def secrets_of(mesh: RunningMesh) -> Secrets:
    """Open the root as the KMS does, and derive what it has released."""
    settings = load(mesh.state / "config" / "kms.toml", Config).member

    async def no_root() -> Root:
        raise AssertionError("a running KMS has no root")

    async with Guest(settings.guest_socket) as guest:
        root = await open_root(guest, settings.state_dir, None, no_root)
    return secrets_of_root(root.secret, released(mesh.state / "logs" / "kms.log"))


def files_with(secrets: Secrets, folder: Path) -> Mapping[str, list[str]]:
    """The files below a folder that hold one of these secrets, and which."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return {str(path): found for path in files if (found := secrets.found_in(path.read_bytes()))}


async def test_no_log_and_no_stored_file_holds_a_key(mesh: RunningMesh, openai_client: OpenAI, tmp_path: Path) -> None:
    openai_client.chat.completions.create(
        model=mesh.mesh["model"], messages=[{"role": "user", "content": "What is a key?"}], max_tokens=2
    )
    secrets = await secrets_of(mesh)
    names = " ".join(secrets.named)
    assert all(name in names for name in ("ledger-keyring 1", "ledger-resume 1", "ledger-vault/"))
    assert {path.stem for path in (mesh.state / "logs").glob("*.log")} >= SERVICES
    assert files_with(secrets, mesh.state) == {}
    (tmp_path / "kms.log").write_text(f"released {secrets.named['ledger-keyring 1 aes-256'].hex()} to the ledger")
    assert files_with(secrets, tmp_path) == {str(tmp_path / "kms.log"): ["ledger-keyring 1 aes-256"]}


def test_no_process_that_holds_secrets_may_write_a_core_dump(mesh: RunningMesh) -> None:
    services = {entry["pid"] for entry in mesh.mesh["services"].values()}
    below = {pid for service in services for pid in descendants(service)}
    assert len(services) == len(SERVICES)
    assert below  # nats-server, the auditor, the engine.
    assert {pid: limit for pid in services | below if (limit := core_limit(pid)) != ("0", "0")} == {}


def core_limit(pid: int) -> tuple[str, str]:
    """The soft and the hard limit of a process, as the kernel has them."""
    (line,) = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file size" in line]
    soft, hard = line.removeprefix("Max core file size").split()[:2]
    return soft, hard
