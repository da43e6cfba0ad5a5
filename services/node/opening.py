"""It is responsible for weights that come encrypted: opened with a key that the KMS releases to this measurement alone.

They appear at once and whole, where no disk has them in the clear, and are measured there like any others.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import structlog
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from libs.identity.agent_key import AgentKey
from libs.identity.any_peer import Channels
from libs.identity.renewal import Identity
from libs.identity.sealed import ReceiverKey
from libs.policy.releases import KeyAlgorithm
from libs.weights import Manifest
from libs.weights.age import open_sealed
from services.node.place import require_unreadable_at_rest

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SealedSettings:
    """The TOML table [engine.sealed]."""

    folder: Path
    """Where the files lie encrypted, as `teemesh weights seal` writes them."""
    key: str
    """The KMS's name of the x25519 key that they are sealed to; policy's rule must let nodes hold it."""
    epoch: int
    """The key's epoch that was the newest when they were sealed."""


Release = Callable[[SealedSettings], Awaitable[X25519PrivateKey]]
"""Where the private key comes from. Raises the KMS's refusals."""


def released_by_kms(kms: Channels, identity: Identity, receiver: ReceiverKey) -> Release:
    """Ask the KMS; the identity's evidence MUST bind the receiver's key."""

    async def release(sealed: SealedSettings) -> X25519PrivateKey:
        key = AgentKey(sealed.key, kms, identity)
        private = await key.receive(KeyAlgorithm.X25519, receiver, sealed.epoch)
        return cast(X25519PrivateKey, private)  # By the algorithm that was asked for.

    return release


async def open_weights(sealed: SealedSettings, manifest: Manifest, target: Path, release: Release) -> None:
    """Have the weights lie at `target`, unless they are there. Raises the KMS's refusals, `WeightsWouldRest`,
    `WeightsMissing` or `WeightsNotOpened`.
    """
    await asyncio.to_thread(require_unreadable_at_rest, target.parent)
    if await asyncio.to_thread(target.exists):
        return  # This node was restarted; whether they are still the same is measured in any case.
    private = await release(sealed)
    # A killed node's draft is taken over: what it has in memory would stay there.
    draft = target.with_name(f".{target.name}.opening")
    try:
        await open_sealed(sealed.folder, manifest, draft, private)
        await asyncio.to_thread(draft.rename, target)
    finally:
        await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
    log.info("weights are opened", files=len(manifest.files), key=sealed.key, epoch=sealed.epoch)
