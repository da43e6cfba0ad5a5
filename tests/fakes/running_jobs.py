"""Jobs as processes of their own, beside a ledger that runs, and the commands that their people type."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tomllib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from services.devtee.machine import VirtualTd
from tests.fakes.joined_mesh import TRUST_DOMAIN
from tests.unit.services.ledger.live import LiveMesh

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended."""

    status: int
    out: str
    err: str

    @property
    def members(self) -> dict[str, Any]:
        """What it said with --json."""
        assert self.status == 0, self.out + self.err
        found: dict[str, Any] = json.loads(self.out)
        return found


async def teemesh(*arguments: object) -> Done:
    """Run a command to its end; everything else goes on meanwhile."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", *map(str, arguments)),
        cwd=_ROOT,
        env={**os.environ, "COLUMNS": "300"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def job_config(
    live: LiveMesh, instance: str, td: VirtualTd | None = None, sealed: Mapping[str, Any] | None = None
) -> AsyncIterator[Path]:
    """The configuration of a job whose guest runs, by default one that the mesh's policy allows."""
    mesh = live.mesh
    folder = mesh.folder / f"job-{instance}"
    folder.mkdir()
    ledgers = tomllib.loads((mesh.folder / "ledger.toml").read_text())
    async with mesh.guest(td or mesh.tds["job"]) as guest:
        member = {
            **ledgers["member"],
            "instance": instance,
            "listen": "127.0.0.1:0",
            "state_dir": str(folder / "state"),
            "guest_socket": str(guest),
        }
        config = folder / "job.toml"
        events = {**live.broker.settings, "outbox": str(folder / "outbox")}
        tables = {"member": member, "events": events, "sealed": dict(sealed or {})}
        config.write_text(tomli_w.dumps({"ledger": live.target, **tables}))
        yield config


def describe(live: LiveMesh) -> Path:
    """Write what an operator's commands need, and return the mesh.json."""
    folder = live.mesh.folder
    key, certificate = live.operator_files()
    (folder / "ada.key").write_bytes(key)
    (folder / "ada.pem").write_bytes(certificate)
    (folder / "ca.pem").write_bytes(live.member.ca_pem)
    path = folder / "mesh.json"
    members = {
        "ledger_grpc": live.target,
        "mesh_ca": "ca.pem",
        "operator_cert": "ada.pem",
        "operator_key": "ada.key",
        "policy": "seed.json",
        "trust_domain": TRUST_DOMAIN,
    }
    path.write_text(json.dumps(members))
    return path
