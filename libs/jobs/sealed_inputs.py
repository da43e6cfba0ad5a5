"""It is responsible for data sets that come encrypted: opened with a key that the KMS releases to this measurement
alone, where no disk has them in the clear, and gone again once the stage is over.

The host has the files; it may damage them, and whoever knows the public key may seal others. So what opens counts only
if it is what the manifest says.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from libs.errors import Code, MeshError
from libs.weights import WeightsMissing, measure, read_manifest, require_same
from libs.weights.age import open_sealed
from libs.weights.manifest import MAX_BYTES
from libs.weights.place import remove_opened, require_unreadable_at_rest


class InputThereBefore(MeshError):
    """Something lies where an input is to be opened: it is not this job's to remove."""

    code = Code.ALREADY_EXISTS
    reason = "INPUT_THERE_BEFORE"


@dataclass(frozen=True, slots=True)
class SealedInput:
    """The TOML table [sealed.NAME]: an input of this name comes encrypted, and is opened at its path."""

    folder: Path
    """Where the files lie encrypted, as `teemesh weights seal` writes them."""
    manifest: Path
    """What they are in the clear, as `teemesh weights manifest --out` writes it."""
    key: str
    """The KMS's name of the x25519 key that they are sealed to; policy's rule must let this job hold it."""
    epoch: int
    """The key's epoch that was the newest when they were sealed."""


Release = Callable[[str, int], Awaitable[X25519PrivateKey]]
"""Where the private key of a name and epoch comes from. Raises the KMS's refusals."""


@asynccontextmanager
async def opened(sealed: SealedInput, target: Path, release: Release) -> AsyncIterator[None]:
    """Have a data set lie at `target` in the clear, until the body ends.

    Raises `WeightsWouldRest`, `InputThereBefore`, the KMS's refusals, `ManifestMalformed`, `WeightsMissing`,
    `WeightsNotOpened`, `WeightsDiffer`, and `WeightsMissing` again where it cannot be removed.
    """
    await asyncio.to_thread(require_unreadable_at_rest, target.parent)
    if await asyncio.to_thread(os.path.lexists, target):
        raise InputThereBefore(f"{target} exists: name a path in memory where the data set may be opened")
    manifest = read_manifest(await asyncio.to_thread(_read, sealed.manifest))
    private = await release(sealed.key, sealed.epoch)
    try:
        await open_sealed(sealed.folder, manifest, target, private)
        require_same(manifest, (await measure(target)).manifest)
        yield
    finally:
        await remove_opened(target)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise WeightsMissing(f"cannot read the manifest {path}: {error.strerror}") from error
