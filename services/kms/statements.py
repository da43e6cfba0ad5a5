"""It is responsible for the policy statement: what is in force, signed anew every minute and after every change, and
told at once to those who watch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from libs.identity.freshness import PolicyKeeper
from libs.policy.statement import Statement, sign_statement
from services.kms.ca import CertificateAuthority

HEARTBEAT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SignedStatement:
    """A statement as it goes out."""

    statement: bytes
    signature: bytes


class StatementSource:
    """Holds the newest statement. The KMS is the authority, so its own keeper takes each one first."""

    def __init__(self, ca: CertificateAuthority, policy: PolicyKeeper) -> None:
        self._ca = ca
        self._policy = policy
        self._stated = asyncio.Event()
        self.newest = self._sign()

    async def keep(self, every_seconds: float) -> None:
        """Sign for ever: on time, and at once when policy moves."""
        while True:
            try:
                async with asyncio.timeout(every_seconds):
                    await self._policy.advanced()
            except TimeoutError:
                pass
            self.newest = self._sign()
            stated, self._stated = self._stated, asyncio.Event()
            stated.set()

    async def watch(self, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> AsyncGenerator[SignedStatement | None, None]:
        """Yield the newest statement and each one after it at once; None when there was none for so long."""
        told: SignedStatement | None = None
        while True:
            if self.newest is not told:
                told = self.newest
                yield told
                continue
            try:
                async with asyncio.timeout(heartbeat_seconds):
                    await self._stated.wait()
            except TimeoutError:
                yield None

    def _sign(self) -> SignedStatement:
        policy, revocations = self._policy.current, self._policy.revocations
        statement = Statement(
            version=policy.version,
            digest=policy.digest,
            revocation=revocations.number,
            time_ms=int(time.time() * 1000),
            revocations_digest=revocations.digest,
        )
        self._policy.note(statement)
        return SignedStatement(statement.document, sign_statement(statement, self._ca.key))
