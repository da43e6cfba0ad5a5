"""It is responsible for the model's files: hashed before anybody is told of them, and held against their manifest."""

from __future__ import annotations

from pathlib import Path

import structlog

from libs.weights import MeasuredWeights, Remembered, WeightsMissing, measure, read_manifest, require_same
from services.node.launch import EngineSettings, Launch

REMEMBERED = "weights.json"
_SHARE = 10
"""Progress is logged as many times."""

log = structlog.get_logger()


async def measured_weights(settings: EngineSettings, launch: Launch, state: Path) -> MeasuredWeights:
    """Return the files that the engine will read, as they are.

    Raises `WeightsMissing`, `WeightsChanged`, `WeightsDiffer` or `ManifestMalformed`.
    """
    weights = await measure(launch.weights, Remembered(state / REMEMBERED), _Told())
    if settings.manifest is not None:
        require_same(read_manifest(_read(settings.manifest)), weights.manifest)
    log.info("weights are measured", digest=weights.manifest.digest.hex(), files=len(weights.manifest.files))
    return weights


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsMissing(f"cannot read the manifest {path}: {error.strerror}") from error


class _Told:
    """Says how far the hashing is, a few times."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, done: int, of: int) -> None:
        share = done * _SHARE // max(of, 1)
        if share > self._told:
            self._told = share
            log.info("measuring the weights", bytes=done, of=of)
