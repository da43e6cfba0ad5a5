"""It is responsible for the order in which a policy comes into force: verified, kept, logged, stated."""

from __future__ import annotations

import asyncio
import time

from libs.identity.freshness import PolicyKeeper
from libs.policy.document import Policy
from libs.policy.succession import verify_publication
from services.kms.decisions import Decisions


class Publication:
    """Takes the next policy version from operators."""

    def __init__(self, policy: PolicyKeeper, decisions: Decisions) -> None:
        self._policy = policy
        self._decisions = decisions
        # Two operators at once: the second is judged by what the first put in force, and only one version is logged.
        self._publishing = asyncio.Lock()

    async def publish(self, signed: bytes) -> Policy:
        """Put the next version in force. Publishing the current one again changes nothing and succeeds.

        It is durable here and in the outbox before any statement names it. Raises what `verify_publication` does.
        """
        async with self._publishing:
            if signed == self._policy.signed(0):
                return self._policy.current
            verify_publication(self._policy.current, signed, time.time())
            await self._decisions.policy(signed)
            # The log may have told of it meanwhile.
            return self._policy.current if signed == self._policy.signed(0) else self._policy.accept(signed)
