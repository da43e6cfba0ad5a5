"""The engine of a running mesh's node, as its machine sees it: its processes, and what its metrics say."""

from __future__ import annotations

import http.client
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from tests.mesh.processes import descendants
from tests.mesh.running import RunningMesh


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """vLLM's server, behind the node's socket."""

    mesh: RunningMesh

    @property
    def pid(self) -> int:
        """Of the API server; the engine's core and workers are its children."""
        everyone = descendants(self.mesh.up.pid)
        (found,) = [pid for pid in everyone if b"vllm.entrypoints.openai.api_server\0" in _command(pid)]
        return found

    def metric(self, name: str) -> float:
        """Return the sum of a counter over its labels."""
        connection = http.client.HTTPConnection("engine", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(str(self.mesh.state / "state" / "node" / "engine" / "engine.sock"))
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert values, name
        return sum(map(float, values))


def _command(pid: int) -> bytes:
    """Return its arguments, each with a NUL at its end. What is no Python process of vLLM's names another module."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
