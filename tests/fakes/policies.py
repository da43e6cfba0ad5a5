"""Policies in force, as whoever serves under them asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.identity.freshness import PolicyStale
from libs.policy.constraints import VERIFIED_ONLY, Constraints
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from libs.policy.revoked import NOTHING_REVOKED, Revoked
from tests.fakes.leases import MODEL, WEIGHTS


@dataclass(slots=True)
class PolicyTwin:
    version: int = 3
    digest: bytes = b"\x03" * 32
    models: Mapping[str, frozenset[str]] = field(default_factory=lambda: {MODEL: frozenset({WEIGHTS})})
    fresh: bool = True
    revoked: Revoked = NOTHING_REVOKED
    foreign_providers: tuple[ForeignProvider, ...] = ()
    constraints: Constraints = VERIFIED_ONLY

    @property
    def current(self) -> PolicyTwin:
        return self

    def require_fresh(self) -> PolicyTwin:
        if not self.fresh:
            raise PolicyStale("no policy statement")
        return self


class KeeperTwin:
    """A policy that was read, in force until another is."""

    def __init__(self, policy: Policy) -> None:
        self.current = policy
        self._advanced = asyncio.Event()

    def require_fresh(self) -> Policy:
        return self.current

    def enact(self, policy: Policy) -> None:
        self.current = policy
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()

    async def advanced(self) -> Policy:
        await self._advanced.wait()
        return self.current
