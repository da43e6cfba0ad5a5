"""It is responsible for the engine of a local mesh's node: the model that comes as a package, vLLM from an environment
of its own, or another OpenAI-compatible server.

Which engine it is gets measured, as in production: it stands in the node's app-compose, and so does what starts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs import jcs
from libs.policy.measured_engine import MeasuredEngine
from libs.weights import Manifest, measure, packaged_weights
from services.cli.policy.composes import TEMPLATES, template_path
from services.cli.terminal.inputs import read_input

MODEL = "smollm2-135m"
"""The model of a local mesh: it comes as a package and runs on the CPU."""
_CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """What runs, and how much of it."""

    measured: MeasuredEngine
    weights: Path | None = None
    """A model's folder or file; None: the packaged model's file, which vLLM does not read."""
    parallel: int = 2
    """How many requests are generated at once."""

    async def manifest(self) -> Manifest:
        """Return what the model's files are now: policy lists its digest. Raises `WeightsMissing`, `WeightsChanged`."""
        return (await measure(self.weights or packaged_weights())).manifest

    def template(self) -> bytes:
        """Return the template of the node's app-compose. Raises `InputUnreadable`."""
        if self.measured.kind == "embedded":
            return read_input(TEMPLATES / "node-embedded.app-compose.json")
        value = jcs.loads_object(read_input(template_path("node")))
        value["teemesh_engine"] = dict(self.measured.to_json())
        return jcs.dumps(value)

    def settings(self, manifest: Path) -> Mapping[str, Any]:
        """Return the table [engine] of the node's configuration."""
        return {
            "manifest": str(manifest),
            "sealed": None,
            "model": MODEL,
            "weights": None if self.weights is None else str(self.weights.absolute()),
            "context_tokens": _CONTEXT_TOKENS,
            "parallel": self.parallel,
            # A local mesh is its user's own: its first tenant may have all of it.
            "tenant_parallel": 0,
        }


EMBEDDED = LocalEngine(MeasuredEngine("embedded"))
