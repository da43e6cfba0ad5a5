"""It is responsible for the salts that part one engine's prefix cache among tenants.

Each is derived from a key that the KMS releases to nodes of this measurement, so it is the same after a restart and at
each replica, and no other measurement can make it. Nobody else is shown one: receipts have its hash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from libs.errors import Code, MeshError
from libs.identity.agent_key import AgentKey, Secret
from libs.identity.any_peer import Channels
from libs.identity.renewal import Identity
from libs.identity.sealed import ReceiverKey
from libs.policy.releases import cache_salt_key

_INFO = b"teemesh/cache-salt/v1\0"
_BYTES = 32
_FIRST_RETRY_SECONDS = 0.2
_LONGEST_RETRY_SECONDS = 5.0
_MAY_PASS = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.RESOURCE_EXHAUSTED})

log = structlog.get_logger()


class SaltKeyMissing(MeshError):
    """The engine keeps one prefix cache for all tenants, and there is no key to part it by."""

    reason = "SALT_KEY_MISSING"


class Salts:
    """The salts of one epoch of a key."""

    def __init__(self, secret: Secret) -> None:
        self._key = secret.material
        self.epoch = secret.epoch

    def of(self, tenant_id: str) -> str:
        """Return a tenant's salt, hex: HKDF-SHA256 (RFC 5869) of the key, the tenant's random id in its info."""
        return HKDF(hashes.SHA256(), _BYTES, salt=None, info=_INFO + tenant_id.encode()).derive(self._key).hex()


Release = Callable[[str], Awaitable[Secret]]
"""Returns the newest epoch of the symmetric key with this name. Raises the KMS's refusals."""


def secrets_of_kms(kms: Channels, identity: Identity, receiver: ReceiverKey) -> Release:
    """Ask the KMS; the identity's evidence MUST bind the receiver's key."""
    return lambda name: AgentKey(name, kms, identity).receive_secret(receiver)


async def receive_salts(
    release: Release, compose_hash: str, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> Salts:
    """Return the salts of a node that was measured with this app-compose. What passes by itself is waited for.

    Raises the KMS's refusals: where policy gives this measurement no such key, there is nothing to serve with.
    """
    name = cache_salt_key(compose_hash)
    pause = _FIRST_RETRY_SECONDS
    while True:
        try:
            return Salts(await release(name))
        except MeshError as error:
            if error.code not in _MAY_PASS:
                raise
            log.warning("no key for salts yet", name=name, reason=error.reason, retry_seconds=pause)
        await sleep(pause)
        pause = min(2 * pause, _LONGEST_RETRY_SECONDS)
