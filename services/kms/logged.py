"""It is responsible for what the log has of the policies and revocations that are held here, and that it gets the rest.

All of them went through an outbox once, or came from the log, so the log lacks one only where an outbox was lost. What
the log was heard to have is part of the place in it, in the sealed book: a start that holds the same says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from libs.events.outbox import OutboxFull
from libs.identity.freshness import PolicyKeeper
from libs.policy.revocation import RevocationSet
from libs.policy.signatures import parse_signed
from services.kms.decisions import Decisions
from services.kms.pages import Place

log = structlog.get_logger()


class Logged:
    """What the log was heard to have, and what of a start's holdings it was not."""

    def __init__(self, policy: PolicyKeeper, decisions: Decisions, place: Place) -> None:
        """`place` is that of the book; where it does not match what is held, the log MUST be read from its start."""
        self._policy = policy
        self._decisions = decisions
        held = policy.revocations
        self.matches = place.policy_version <= policy.current.version and place.revocations == held.digest
        self._policy_version = place.policy_version
        self._revocations = held if self.matches else RevocationSet()
        self._digest = self._revocations.digest
        # What is taken from now on goes to the log, or comes from it, by itself.
        self._last_version = policy.current.version
        self._told_version = policy.seed_version - 1
        self._unheard = set() if self.matches else set(held.signed)

    def place(self, token: bytes) -> Place:
        """Return the place that the log was read to."""
        return Place(token, self._policy_version, self._digest)

    def has_policy(self, version: int) -> bool:
        """Whether the log was heard to have a version. It takes them in their order, so it has the earlier ones too."""
        return version <= self._policy_version

    def hear_policy(self, version: int, digest: bytes) -> None:
        """The log has a version; it counts if it is the one held here."""
        if not self.has_policy(version) and parse_signed(self._policy.signed(version)).policy.digest == digest:
            self._policy_version = version

    def hear_revocations(self, identifiers: Iterable[bytes]) -> None:
        """The log has these; those that are held here count."""
        held = self._policy.revocations.signed
        heard = self._revocations.signed
        new = [held[identifier] for identifier in identifiers if identifier in held and identifier not in heard]
        if new:
            self._revocations = self._revocations.union(new)
            self._digest = self._revocations.digest
            self._unheard.difference_update(signed.revocation.id for signed in new)

    async def introduce(self) -> None:
        """Record the policies that the log was not heard to have, before it is read.

        The ledger may have to judge this very start by one of them. What the outbox has no room for is for `record`.
        """
        try:
            await self._record_policies()
        except OutboxFull as error:
            log.warning("policies are not on record yet", reason=error.reason)

    async def record(self) -> None:
        """Record what this start found here and the log, read to its end, lacks: each once. Raises `OutboxFull`."""
        await self._record_policies()
        held = self._policy.revocations.signed
        for identifier in sorted(self._unheard):
            await self._decisions.revocation(held[identifier].document)
            self._unheard.discard(identifier)

    async def _record_policies(self) -> None:
        for version in range(max(self._told_version, self._policy_version) + 1, self._last_version + 1):
            await self._decisions.policy(self._policy.signed(version))
            self._told_version = version
