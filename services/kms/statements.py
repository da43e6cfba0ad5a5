"""It is responsible for the policy statement: what is in force, signed anew every minute and after every change."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from libs.identity.freshness import PolicyKeeper
from libs.policy.statement import Statement, sign_statement
from services.kms.ca import CertificateAuthority


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

    def _sign(self) -> SignedStatement:
        policy = self._policy.current
        statement = Statement(
            version=policy.version,
            digest=policy.digest,
            revocation=0,  # None exist apart from policy versions: operators revoke by publishing the next one.
            time_ms=int(time.time() * 1000),
        )
        self._policy.note(statement)
        return SignedStatement(statement.document, sign_statement(statement, self._ca.key))
