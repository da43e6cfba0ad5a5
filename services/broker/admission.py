"""It is responsible for which keys nats-server lets in: those that hold a lease here, for as long as they hold it.

What cannot be judged is no lease: while the broker's policy may be stale, nobody is let in and nobody stays. Who was
judged under the policy before stays until judged again, which takes its turn; whom a revocation names does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol

import structlog

from libs.errors import MeshError
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import Leases

_POLL_SECONDS = 0.5
"""How long a connection may outlive its lease, but for the time that nats-server takes."""

log = structlog.get_logger()


class Server(Protocol):
    """What lets keys in."""

    def admit(self, keys: frozenset[bytes]) -> None: ...

    async def until_admitted(self, key: bytes) -> None: ...


class Admission:
    """The leases of this broker, as nats-server knows them."""

    def __init__(self, leases: Leases, policy: PolicyKeeper, server: Server, roles: Collection[str]) -> None:
        """`roles` are those that nats-server has a user for."""
        self._leases = leases
        self._policy = policy
        self._server = server
        self._roles = roles
        self._unjudged: str | None = None

    async def keep(self) -> None:
        """Let nats-server follow every lease."""
        while True:
            self._server.admit(self._believed())
            await asyncio.sleep(_POLL_SECONDS)

    async def admit(self, key: bytes) -> None:
        """Return once nats-server lets in this key, if it holds a lease. Raises `KeyNotAdmitted`."""
        self._server.admit(self._believed())
        await self._server.until_admitted(key)

    def _believed(self) -> frozenset[bytes]:
        try:
            self._policy.require_fresh()
        except MeshError as error:
            if self._unjudged != error.reason:
                log.warning("no lease can be judged: nobody is let in", reason=error.reason, detail=str(error))
            self._unjudged = error.reason
            return frozenset()
        self._unjudged = None
        return frozenset(key for key, lease in self._leases.live() if lease.certificate.role in self._roles)
