"""It is responsible for how a revocation comes into force: verified, logged, kept, stated. And it gives them out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.identity.freshness import PolicyKeeper
from libs.policy.revocation import SignedRevocation, parse_revocation, verify_revocation
from libs.policy.vocabulary import KEY_BYTES
from services.kms.decisions import Decisions

MAX_REVOCATIONS = 10_000
"""So many are taken: every service keeps and verifies all of them. Beyond that, operators publish a policy."""

_PAGE = 500
"""Revocations in one answer: far below the size of a message."""


class RevocationsFull(MeshError):
    """There are too many revocations: publish a policy that withdraws what they withdraw."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "REVOCATIONS_FULL"


class PageTokenMalformed(MeshError):
    """Not a page token of this service."""

    code = Code.INVALID_ARGUMENT
    reason = "PAGE_TOKEN_MALFORMED"


@dataclass(frozen=True, slots=True)
class ListedRevocations:
    """Some of the revocations, ordered by id."""

    signed: tuple[SignedRevocation, ...]
    next_token: bytes
    """Empty on the last one."""


class Revocations:
    """Takes revocations from any operator of the policy in force."""

    def __init__(self, policy: PolicyKeeper, decisions: Decisions, limit: int = MAX_REVOCATIONS) -> None:
        self._policy = policy
        self._decisions = decisions
        self._limit = limit
        # Of two operators who revoke the same thing at once, one makes the entry.
        self._revoking = asyncio.Lock()

    async def revoke(self, document: bytes) -> SignedRevocation:
        """Revoke. What is known already, lifted or not, changes nothing and succeeds.

        It is durable in the outbox and here before any statement names it. Raises what `verify_revocation` does,
        `RevocationMalformed` and `RevocationsFull`.
        """
        async with self._revoking:
            signed = parse_revocation(document)
            policy, known = self._policy.current, self._policy.revocations
            verify_revocation(signed, policy.operator_keys, policy.trust_domain)
            if signed.revocation.id not in known.signed:
                if known.number >= self._limit:
                    raise RevocationsFull(f"{known.number} revocations are known: publish the next policy instead")
                await self._decisions.revocation(signed.document)
            # One that is known and that the disk did not take is kept before anybody is told that it is.
            self._policy.accept_revocations([signed.document])
            return signed

    def page(self, token: bytes) -> ListedRevocations:
        """Return what follows a token, the empty one first. Raises `PageTokenMalformed`."""
        if len(token) not in (0, KEY_BYTES):
            raise PageTokenMalformed("page tokens come from earlier pages")
        signed = self._policy.revocations.signed
        found = [identifier for identifier in sorted(signed) if identifier > token]
        listed = found[:_PAGE]
        next_token = listed[-1] if len(found) > _PAGE else b""
        return ListedRevocations(tuple(signed[identifier] for identifier in listed), next_token)
