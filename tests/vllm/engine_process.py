"""The engine of a running mesh's node, as its machine sees it: its processes, and what its metrics say."""

from __future__ import annotations

import http.client
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from services.node.engine import SupervisedEngine
from tests.mesh.processes import descendants
from tests.mesh.running import RunningMesh

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same as IPv6 has it, and ::1."""
_LISTENING = "0A"


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

    @property
    def listening(self) -> set[str]:
        """Where it and its children take TCP connections: addresses as proc(5) has them, in hexadecimal."""
        sockets = {link for pid in {self.pid, *descendants(self.pid)} for link in _open_files(pid)}
        entries = [
            line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()
        ]
        return {
            entry[1].partition(":")[0]
            for entry in entries
            if entry[3] == _LISTENING and f"socket:[{entry[9]}]" in sockets
        }

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


def key_of(engine: SupervisedEngine) -> str:
    """Return the key that the node gave it."""
    variables = Path(f"/proc/{engine.pid}/environ").read_bytes().decode().split("\0")
    (key,) = [each.partition("=")[2] for each in variables if each.startswith("VLLM_API_KEY=")]
    return key


def _open_files(pid: int) -> list[str]:
    try:
        return [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except FileNotFoundError:
        return []


def _command(pid: int) -> bytes:
    """Return its arguments, each with a NUL at its end. What is no Python process of vLLM's names another module."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
