"""Generates `gen/teemesh` from `protos/` when the distribution is installed or built.

Generated code is not committed: the `.proto` files are the contract, this is their Python form.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def generate(root: Path) -> None:
    """Write messages, stubs and their types for every proto below `root/protos` into `root/gen`."""
    protos = root / "protos"
    out = root / "gen"
    shutil.rmtree(out / "teemesh", ignore_errors=True)
    out.mkdir(exist_ok=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={protos}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=only_async,quiet:{out}",
            *sorted(str(path) for path in protos.glob("teemesh/*/v1/*.proto")),
        ],
        check=True,
        # The mypy plugins are scripts beside this interpreter, which need not be on the caller's PATH.
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
    )
    for folder in [out / "teemesh", *(path for path in (out / "teemesh").rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
        (folder / "py.typed").touch()


class ProtoBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that hatchling runs before it collects files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate(Path(self.root))
        if version == "standard":  # An editable install finds gen/ by its dev-mode-dirs instead.
            build_data["force_include"]["gen/teemesh"] = "teemesh"


if __name__ == "__main__":
    generate(Path(__file__).parent)
