"""A mesh as its user has it: `teemesh up` as a process of its own, and what it wrote."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.process import tethered
from tests.fakes.ports import free_port

ROOT = Path(__file__).parents[2]
READY_SECONDS = 100
STOP_SECONDS = 60
_LOG_CHARACTERS = 1500


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """A mesh that serves."""

    state: Path
    up: subprocess.Popen[str]

    @property
    def mesh(self) -> dict[str, Any]:
        """mesh.json as it is now."""
        members: dict[str, Any] = json.loads((self.state / "mesh.json").read_bytes())
        return members

    @property
    def ports(self) -> dict[str, int]:
        """The internal ports by name."""
        members: dict[str, int] = json.loads((self.state / "config" / "ports.json").read_bytes())
        return members

    def file(self, name: str) -> bytes:
        """The file that a member of mesh.json names."""
        return Path(self.mesh[name]).read_bytes()

    def logs(self) -> str:
        """The end of what every process wrote, for whoever must find out why it does not serve."""
        return _logs(self.state)

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run another command on this mesh."""
        return teemesh(*arguments, "--state", str(self.state), timeout=timeout)


def teemesh(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "services.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def until_serving(mesh: RunningMesh) -> None:
    """Ask `status`, which takes about a second, until everyone serves."""
    for _ in range(60):
        if mesh.run("status").returncode == 0:
            return
    raise AssertionError("not everyone serves again")


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose sockets have paths short enough, which pytest's own may not."""
    folder = Path(tempfile.mkdtemp(prefix="tm-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_mesh(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, checkout: Path = ROOT
) -> Iterator[RunningMesh]:
    """Run `teemesh up` until the block ends; the block begins when it says that it is ready.

    `environment` is added to this process's own. Another checkout than this one is run by the Python of its `.venv`.
    """
    python = sys.executable if checkout == ROOT else str(checkout / ".venv" / "bin" / "python")
    state = folder / "s"
    options = ["--state", str(state), "--router-port", str(free_port()), *arguments]
    # Tied to this process: a worker that is killed in the middle of a test leaves no mesh behind.
    command = tethered([python, "-m", "services.cli", "up", *options])
    with subprocess.Popen(
        command,
        cwd=checkout,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as up:
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(up, lines), daemon=True)
        reader.start()
        try:
            _until_ready(lines, state)
            yield RunningMesh(state, up)
        finally:
            if up.poll() is None:
                up.send_signal(signal.SIGTERM)
            try:
                up.wait(STOP_SECONDS)
            finally:
                up.kill()
                reader.join(10)


def _read(up: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    assert up.stdout is not None
    for line in up.stdout:
        lines.put(line)
    lines.put(None)


def _until_ready(lines: queue.SimpleQueue[str | None], state: Path) -> None:
    said: list[str] = []
    try:
        while (line := lines.get(timeout=READY_SECONDS)) is not None:
            said.append(line)
            if line.rstrip().endswith("] ready"):
                return
    except queue.Empty:
        said.append("(nothing more)")
    raise AssertionError("the mesh did not become ready:\n" + "".join(said) + _logs(state))


def _logs(state: Path) -> str:
    files = sorted((state / "logs").glob("*.log"))
    return "\n".join(f"--- {file.name}\n{file.read_text()[-_LOG_CHARACTERS:]}" for file in files)
