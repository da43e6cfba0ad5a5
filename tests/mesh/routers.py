"""A second router of a running mesh, as a process of its own."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tomli_w

from libs.process import tethered
from tests.fakes.ports import free_ports
from tests.mesh.https import Https
from tests.mesh.patience import PATIENCE_SECONDS, until
from tests.mesh.running import ROOT, RunningMesh, short_folder


@dataclass(frozen=True, slots=True)
class Router:
    """A router, and where it says how it is."""

    https: Https
    metrics: str
    """host:port."""

    def counted(self, name: str) -> int:
        """A number of its metrics; 0 for one that is not there yet."""
        connection = http.client.HTTPConnection(self.metrics, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        return next((int(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0)


@contextmanager
def another_router(mesh: RunningMesh, **routing: Any) -> Iterator[Router]:
    """Start one, configured as the first but for what two cannot share, and for `routing`; wait until it serves."""
    own, https_port, grpc, metrics = free_ports(4)
    with short_folder() as folder:
        config = tomllib.loads((mesh.state / "config" / "router.toml").read_text())
        config["member"] |= {"instance": "router-2", "listen": f"127.0.0.1:{own}", "state_dir": str(folder)}
        config["http"] |= {"listen": f"127.0.0.1:{https_port}", "grpc_listen": f"127.0.0.1:{grpc}"}
        config["events"]["outbox"] = str(folder / "outbox")
        config["metrics"] = {"listen": f"127.0.0.1:{metrics}"}
        config["routing"] |= routing
        (folder / "router.toml").write_text(tomli_w.dumps(config))
        command = tethered([sys.executable, "-m", "services.router", str(folder / "router.toml")])
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=log, stderr=log)
        described = mesh.mesh
        https = Https(f"https://127.0.0.1:{https_port}", described["router_ca"], described["api_key"])
        try:
            until(lambda: _serves(https), lambda: (folder / "log").read_text()[-2000:])
            yield Router(https, f"127.0.0.1:{metrics}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)


def _serves(https: Https) -> bool:
    try:
        models = https.get("/v1/models")
    except OSError:
        return False
    return models.status == 200 and bool(models.json["data"])
