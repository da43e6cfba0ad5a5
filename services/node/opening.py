"""It is responsible for weights that come encrypted: opened with a key that the KMS releases to this measurement alone.

They appear at once, whole and as their manifest has them, where no disk has them in the clear, and are measured there
like any others.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import structlog
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from libs.identity.agent_key import AgentKey
from libs.identity.any_peer import Channels
from libs.identity.renewal import Identity
from libs.identity.sealed import ReceiverKey
from libs.policy.releases import KeyAlgorithm
from libs.weights import Manifest, Remembered, WeightsChanged, WeightsDiffer, WeightsMissing, measure, require_same
from libs.weights.age import open_sealed
from libs.weights.place import remove_opened, require_unreadable_at_rest
from services.node.opened_with import OpenedWith, WeightsKey

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SealedSettings:
    """The TOML table [engine.sealed]."""

    folder: Path
    """Where the files lie encrypted, as `teemesh weights seal` writes them."""
    key: str
    """The KMS's name of the x25519 key that they are sealed to; policy's rule must let nodes hold it."""
    epoch: int
    """The key's epoch that was the newest when they were sealed; 0: the newest of today."""


@dataclass(frozen=True, slots=True)
class Released:
    """The private key that they are sealed to."""

    private: X25519PrivateKey = field(repr=False)
    epoch: int
    """Which one of the key's it is."""


Release = Callable[[SealedSettings], Awaitable[Released]]
"""Where the private key comes from. Raises the KMS's refusals."""


def released_by_kms(kms: Channels, identity: Identity, receiver: ReceiverKey) -> Release:
    """Ask the KMS; the identity's evidence MUST bind the receiver's key."""

    async def release(sealed: SealedSettings) -> Released:
        key = AgentKey(sealed.key, kms, identity)
        found = await key.receive_epoch(KeyAlgorithm.X25519, receiver, sealed.epoch)
        return Released(cast(X25519PrivateKey, found.key), found.epoch)  # By the algorithm that was asked for.

    return release


async def open_weights(
    sealed: SealedSettings,
    manifest: Manifest,
    target: Path,
    release: Release,
    remembered: Callable[[], Remembered],
    opened_with: OpenedWith,
) -> None:
    """Have the manifest's weights lie at `target`, unless they are there. What else lies there is removed.

    Raises the KMS's refusals, `WeightsWouldRest`, `WeightsMissing`, `WeightsChanged`, `WeightsNotOpened` or
    `WeightsDiffer`.
    """
    await asyncio.to_thread(require_unreadable_at_rest, target.parent)
    draft = target.with_name(f".{target.name}.opening")
    await remove_opened(draft)  # A killed node's, of which nothing is known.
    if await asyncio.to_thread(os.path.lexists, target):
        try:
            require_same(manifest, (await measure(target, remembered())).manifest)
            return  # This node was restarted.
        except (WeightsDiffer, WeightsMissing, WeightsChanged) as error:
            # Left there, it would have every restart fail: after a new manifest, or a file that the host had damaged.
            log.warning("what lies where the weights are opened is removed", reason=str(error))
            await remove_opened(target)
    released = await release(sealed)
    try:
        await open_sealed(sealed.folder, manifest, draft, released.private)
        require_same(manifest, (await measure(draft, remembered())).manifest)
        # Whatever epoch was asked for: a note of before would name the key of another opening.
        await asyncio.to_thread(opened_with.note, WeightsKey(sealed.key, released.epoch), manifest.digest)
        # At once, in no thread: one that nobody waited for would rename what is being removed.
        draft.rename(target)
    finally:
        await remove_opened(draft)
    log.info("weights are opened", files=len(manifest.files), key=sealed.key, epoch=released.epoch)
