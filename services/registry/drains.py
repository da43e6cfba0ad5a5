"""It is responsible for operators' drains: a node that one of them drains gets no new work until one resumes it.

A drain is kept beside the node's lease under its name, and only this module writes it: whatever the node does, whether
it renews, restarts, comes back under another key or at another registry, the drain stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from libs.errors import Code, MeshError
from services.registry.providers import NODE_INSTANCE, REASON, Drain
from services.registry.store import Bucket, StoreConflict
from services.registry.view import drain_key, lease_key

_ATTEMPTS = 3

log = structlog.get_logger()


class ProviderUnknown(MeshError):
    """No node of that name has a lease."""

    code = Code.NOT_FOUND
    reason = "PROVIDER_UNKNOWN"


class DrainReasonMalformed(MeshError):
    """The reason is too long, or not printable ASCII."""

    code = Code.INVALID_ARGUMENT
    reason = "DRAIN_REASON_MALFORMED"


class Drains:
    """Begins and ends drains in the store."""

    def __init__(self, bucket: Bucket, trust_domain: str, clock: Callable[[], float] = time.time) -> None:
        self._bucket = bucket
        self._prefix = f"spiffe://{trust_domain}/node/"
        self._clock = clock

    async def begin(self, spiffe_id: str, by: str, reason: str) -> None:
        """Drain a node. One that is drained already stays so, by the first who did.

        Raises `ProviderUnknown`, so that a misspelt name drains nobody in silence, `DrainReasonMalformed` and the
        store's refusals.
        """
        if not REASON.fullmatch(reason):
            raise DrainReasonMalformed("the reason must be at most 200 printable ASCII characters")
        if not self._is_name(spiffe_id) or await self._bucket.get(lease_key(spiffe_id)) is None:
            raise ProviderUnknown(f"no lease of {spiffe_id[:300]!a}")
        drain = Drain(by, reason, int(self._clock() * 1000))
        try:
            await self._bucket.put(drain_key(spiffe_id), drain.encode(), 0)
        except StoreConflict:
            return
        log.info("node drained", node=spiffe_id, by=by, why=reason)

    async def end(self, spiffe_id: str, by: str) -> None:
        """End a drain, if there is one. Raises `ProviderUnknown` for what is no node's name, and the store's
        refusals.
        """
        if not self._is_name(spiffe_id):
            raise ProviderUnknown(f"no node is called {spiffe_id[:300]!a}")
        for _ in range(_ATTEMPTS):
            stored = await self._bucket.get(drain_key(spiffe_id))
            if stored is None:
                return
            try:
                await self._bucket.delete(drain_key(spiffe_id), stored.revision)
            except StoreConflict:
                continue
            log.info("node resumed", node=spiffe_id, by=by)
            return
        raise StoreConflict(f"the drain of {spiffe_id} keeps changing")

    def _is_name(self, spiffe_id: str) -> bool:
        instance = spiffe_id.removeprefix(self._prefix)
        return instance != spiffe_id and NODE_INSTANCE.fullmatch(instance) is not None
