"""It is responsible for the digest that stands in for an image's in a local mesh: of the files a service would run.

So a changed line in a service, in a lib or in the contract changes the service's measurement, as a new image would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import teemesh

from libs import jcs
from services.cli.mesh.roster import SOURCE_ROOT


def source_digest(service: str, root: Path = SOURCE_ROOT) -> str:
    """Return "sha256:..." over names and contents of the service's own files, all of libs and the generated code."""
    contract = Path(teemesh.__path__[0])
    folders = {"libs": root / "libs", f"services/{service}": root / "services" / service, "teemesh": contract}
    files = {
        f"{name}/{path.relative_to(folder).as_posix()}": hashlib.sha256(path.read_bytes()).hexdigest()
        for name, folder in folders.items()
        for path in _sources(folder)
    }
    files["services/__init__.py"] = hashlib.sha256((root / "services" / "__init__.py").read_bytes()).hexdigest()
    return f"sha256:{hashlib.sha256(jcs.dumps(files)).hexdigest()}"


def _sources(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
