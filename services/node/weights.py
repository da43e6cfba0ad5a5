"""It is responsible for the model's files: hashed before anybody is told of them, and held against their manifest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from libs.weights import Manifest, MeasuredWeights, Remembered, WeightsMissing, measure, read_manifest, require_same
from services.node.launch import EngineSettings, Launch
from services.node.opened_with import OpenedWith, WeightsKey
from services.node.opening import Release, SealedSettings, open_weights

REMEMBERED = "weights.json"
_OPENED_WITH = "weights-key.json"
_SHARE = 10
"""Progress is logged as many times."""

log = structlog.get_logger()


async def measured_weights(settings: EngineSettings, launch: Launch, state: Path) -> MeasuredWeights:
    """Return the files that the engine will read, as they are.

    Raises `WeightsMissing`, `WeightsChanged`, `WeightsDiffer` or `ManifestMalformed`.
    """
    weights = await measure(launch.weights, Remembered(state / REMEMBERED), _Told())
    if settings.manifest is not None:
        require_same(expected(settings.manifest), weights.manifest)
    log.info("weights are measured", digest=weights.manifest.digest.hex(), files=len(weights.manifest.files))
    return weights


class Weights(Protocol):
    """Where a node's weights come from."""

    @property
    def digest(self) -> bytes:
        """What this node claims them to be."""

    async def ready(self, release: Release) -> MeasuredWeights:
        """Have them lie where the engine reads them, as they are claimed to be.

        Raises what `measured_weights` and `open_weights` raise.
        """

    async def key(self) -> WeightsKey | None:
        """Return the KMS key that they were opened with, once they are ready; None where they came in the clear, or an
        earlier version opened them.
        """


@dataclass(frozen=True, slots=True)
class PlainWeights:
    """They are there, and measured."""

    measured: MeasuredWeights

    @property
    def digest(self) -> bytes:
        return self.measured.manifest.digest

    async def ready(self, release: Release) -> MeasuredWeights:
        return self.measured

    async def key(self) -> WeightsKey | None:
        return None


@dataclass(frozen=True, slots=True)
class SealedWeights:
    """They are encrypted: the manifest is taken at its word until they are opened, and nothing is served before."""

    settings: EngineSettings
    sealed: SealedSettings
    launch: Launch
    state: Path
    manifest: Manifest

    @property
    def digest(self) -> bytes:
        return self.manifest.digest

    async def ready(self, release: Release) -> MeasuredWeights:
        # Anew for each time of measuring: what was remembered meanwhile is read.
        await open_weights(
            self.sealed,
            self.manifest,
            self.launch.weights,
            release,
            lambda: Remembered(self.state / REMEMBERED),
            self._opened_with,
        )
        return await measured_weights(self.settings, self.launch, self.state)

    async def key(self) -> WeightsKey | None:
        return await asyncio.to_thread(self._opened_with.key_of, self.digest)

    @property
    def _opened_with(self) -> OpenedWith:
        return OpenedWith(self.state / _OPENED_WITH)


async def weights_of(settings: EngineSettings, launch: Launch, state: Path) -> Weights:
    """Raises what `measured_weights` raises."""
    if settings.sealed is not None and settings.manifest is not None:
        return SealedWeights(settings, settings.sealed, launch, state, expected(settings.manifest))
    return PlainWeights(await measured_weights(settings, launch, state))


def expected(path: Path) -> Manifest:
    """Read the manifest that the files must agree with. Raises `WeightsMissing` or `ManifestMalformed`."""
    try:
        return read_manifest(path.read_bytes())
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
