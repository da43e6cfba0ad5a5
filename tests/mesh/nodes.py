"""A second node of a running mesh, as a process of its own, and requests that only one of the nodes may serve."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from libs.process import tethered
from tests.fakes.ports import free_port
from tests.mesh.https import Https
from tests.mesh.patience import PATIENCE_SECONDS, until
from tests.mesh.processes import descendants
from tests.mesh.running import ROOT, RunningMesh

CHAT = "/v1/chat/completions"
FIRST = "local"
"""The instance of the mesh's own node."""


@dataclass(frozen=True, slots=True)
class AnotherNode:
    """A node that was started beside the mesh's own, with the same measurement."""

    mesh: RunningMesh
    https: Https
    """To a router that lists it."""
    instance: str
    pid: int
    folder: Path
    said: list[str]
    """Its log, by lines: kept here, and so whatever befalls its files."""

    @property
    def engine(self) -> int | None:
        """Its engine's process as it is now."""
        found = engines_below(self.pid)
        return found[0] if found else None

    def log(self) -> str:
        return "".join(self.said)[-3000:]

    def serves(self) -> bool:
        """Say whether a request that only this node may serve is answered."""
        session = self.session()
        return session is not None and self.https.post(CHAT, self.question(session, max_tokens=1)).status == 200

    def session(self) -> str | None:
        """The session that stands for this node now; None while a router has none."""
        return session_of(self.https, self.instance)

    def question(self, session: str, **members: Any) -> bytes:
        """A chat request that is pinned to a session."""
        return question(self.mesh, session, **members)


def session_of(https: Https, instance: str) -> str | None:
    """The newest session of a node by its instance's name."""
    listed = https.get("/v1/aci/sessions").json["sessions"]
    return next((each["session_id"] for each in listed if each["upstream_name"].endswith(f"/node/{instance}")), None)


def question(mesh: RunningMesh, session: str, **members: Any) -> bytes:
    """A chat request that is pinned to a session, and unlike every other."""
    asked = {"role": "user", "content": "Count from one to one thousand."}
    pinned = {"aci_session_ids": [session]}
    return json.dumps(
        {"model": mesh.mesh["model"], "messages": [asked], "provider": pinned, "seed": secrets.randbits(31), **members}
    ).encode()


def node_command(mesh: RunningMesh, folder: Path, instance: str, **engine: Any) -> list[str]:
    """Configure another node, as the mesh's own but for what two cannot share, and for `engine`; return its command."""
    port = free_port()
    config = tomllib.loads((mesh.state / "config" / "node.toml").read_text())
    config["member"] |= {"instance": instance, "listen": f"127.0.0.1:{port}", "state_dir": str(folder / "state")}
    config["endpoint"] = f"127.0.0.1:{port}"
    config["engine"] |= engine
    (folder / "node.toml").write_text(tomli_w.dumps(config))
    return tethered([sys.executable, "-m", "services.node", str(folder / "node.toml")])


@contextmanager
def another_node(
    mesh: RunningMesh,
    https: Https,
    folder: Path,
    instance: str = "node-2",
    environment: Mapping[str, str] | None = None,
    **engine: Any,
) -> Iterator[AnotherNode]:
    """Start one, configured as the mesh's own but for what two cannot share, and for `engine`; wait until it serves.

    `environment` is added to this process's own.
    """
    command = node_command(mesh, folder, instance, **engine)
    said: list[str] = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=said.extend, args=(process.stdout,), daemon=True)
        reader.start()
        node = AnotherNode(mesh, https, instance, process.pid, folder, said)
        try:
            until(node.serves, node.log)
            yield node
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE_SECONDS)
            finally:
                process.kill()
                reader.join(PATIENCE_SECONDS)


def engines_below(pid: int) -> list[int]:
    """The embedded engines among the processes below one."""
    return [each for each in sorted(descendants(pid)) if _runs_engine(each)]


def _runs_engine(pid: int) -> bool:
    try:
        return b"services.node.embedded\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
