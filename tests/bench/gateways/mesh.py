"""Responsible for a whole mesh in front of the engine that costs nothing, which its node takes for vLLM."""

from __future__ import annotations

import ssl
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.gateways.load import Gateway
from tests.mesh.running import ROOT, RunningMesh, running_mesh

_PARALLEL = 2000
"""More than anything here asks at once: the node is to queue nothing."""


@contextmanager
def mesh_before(folder: Path, *, pause: float = 0.0, checkout: Path = ROOT) -> Iterator[RunningMesh]:
    """Run a mesh, perhaps of another checkout, whose engine streams with so many seconds between its words. The engine
    is this checkout's.
    """
    folder.mkdir(exist_ok=True)
    environment = _environment(folder / "environment", pause)
    weights = folder / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    options = (
        "--vllm",
        str(environment / "bin" / "python"),
        "--weights",
        str(weights),
    )
    with running_mesh(folder, *options, "--parallel", str(_PARALLEL), checkout=checkout) as mesh:
        yield mesh


def _environment(folder: Path, pause: float) -> Path:
    """Make an environment that has what the node takes for vLLM installed, with its pause in it."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    server = packages / "vllm" / "entrypoints" / "openai" / "api_server.py"
    server.parent.mkdir(parents=True)
    server.write_text(f"from tests.bench.gateways.engine import main\n\nmain({pause})\n")
    metadata = packages / "vllm-0.0.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.0.0\n")
    (packages / "tests.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    return folder


def router_of(mesh: RunningMesh) -> Gateway:
    """The router's HTTPS, as a client of the mesh asks it."""
    described = mesh.mesh
    return Gateway(
        "teemesh",
        described["router_url"],
        ssl.create_default_context(cafile=described["router_ca"]),
        {"Authorization": f"Bearer {described['api_key']}"},
    )
