"""The processes that faults are done to: found afresh each time, as the kernel and mesh.json have them."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.mesh.processes import descendants
from tests.mesh.running import RunningMesh


@dataclass(frozen=True, slots=True)
class Target:
    """One process of a mesh. `below`: what its command line holds, when it is a service's child."""

    name: str
    service: str
    below: str | None = None

    def pid(self, mesh: RunningMesh) -> int | None:
        """The process as it is now; None while there is none."""
        service: int | None = mesh.mesh["services"][self.service]["pid"]
        if service is None or not Path(f"/proc/{service}").exists():
            return None
        if self.below is None:
            return service
        return next((pid for pid in sorted(descendants(service)) if self.below in _command(pid)), None)


TARGETS = (
    Target("devtee", "devtee"),
    Target("witness", "witness"),
    Target("attestation", "attestation"),
    Target("kms", "kms"),
    Target("broker", "broker"),
    Target("nats-server", "broker", "bin/nats-server"),
    Target("ledger", "ledger"),
    Target("auditor", "ledger", "services.ledger.auditor"),
    Target("examiner", "ledger", "services.ledger.examiner"),
    Target("registry", "registry"),
    Target("node", "node"),
    Target("engine", "node", "services.node.embedded"),
    Target("router", "router"),
)


def kill(mesh: RunningMesh, target: Target) -> int:
    """Send SIGKILL; return the process id that it went to."""
    pid = target.pid(mesh)
    assert pid is not None, f"there is no {target.name} to kill"
    os.kill(pid, signal.SIGKILL)
    return pid


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
