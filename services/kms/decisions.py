"""It is responsible for the KMS's own entries in the ledger: key decisions, certificates, policies and revocations.

What operators ordered and what puts a policy or a revocation in force are essential: a part of the outbox is theirs
alone, so that whoever makes the KMS say much else while the ledger is away cannot keep anything from being revoked. So
are the keys that the ledger starts with, and the certificates that `certified` says: without them nothing empties the
outbox.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from libs import jcs
from libs.events.vault import VaultKey
from libs.transparency.leaf import Kind
from services.kms.certified import Certified
from services.kms.refusals import Refusals

RESERVED_FRACTION = 4
"""One in so many bytes of the outbox is for what is essential: more than the ledger's answers to all the rest take."""

_ACKNOWLEDGEMENT_SECONDS = 5.0


class Log(Protocol):
    """What decisions are written to: the mesh's publisher."""

    async def commit(
        self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None, timeout: float, essential: bool = False
    ) -> object:
        """Return when the ledger holds the entry. Raises `LedgerUnavailable`, `OutboxFull`."""
        ...

    async def enqueue(
        self, kind: Kind, body: Mapping[str, Any], *, vault: VaultKey | None, essential: bool = False
    ) -> object:
        """Return when the entry is durable here. Raises `OutboxFull`."""
        ...


class Decisions:
    """Writes decisions through the outbox, so that none is lost while the ledger is away."""

    def __init__(self, publisher: Log, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is what certificates a minute are counted by."""
        self._publisher = publisher
        self.refusals = Refusals(self.record_later)
        self.certified = Certified(self._admitted, self.refusals, clock)

    async def record(self, decision: Mapping[str, Any]) -> None:
        """Record a decision and wait until the ledger holds it. Raises `LedgerUnavailable`."""
        await self._publisher.commit(Kind.KEY_DECISION, decision, vault=None, timeout=_ACKNOWLEDGEMENT_SECONDS)

    async def record_later(self, decision: Mapping[str, Any]) -> None:
        """Record a decision durably here; the ledger gets it as soon as it can."""
        await self._publisher.enqueue(Kind.KEY_DECISION, decision, vault=None)

    async def released_for_boot(self, decision: Mapping[str, Any]) -> None:
        """Record durably here that a key of the boot class is about to go out."""
        await self._publisher.enqueue(Kind.KEY_DECISION, decision, vault=None, essential=True)

    async def changed(self, change: Mapping[str, Any]) -> None:
        """Record a change of keys and wait until the ledger holds it. Raises `LedgerUnavailable`."""
        await self._publisher.commit(
            Kind.KEY_DECISION, change, vault=None, timeout=_ACKNOWLEDGEMENT_SECONDS, essential=True
        )

    async def changed_earlier(self, change: Mapping[str, Any]) -> None:
        """Record durably here a change of keys that was made before; the ledger gets it as soon as it can."""
        await self._publisher.enqueue(Kind.KEY_DECISION, change, vault=None, essential=True)

    async def policy(self, signed: bytes) -> None:
        """Record a signed policy version."""
        await self._publisher.enqueue(Kind.POLICY, jcs.loads_object(signed), vault=None, essential=True)

    async def revocation(self, signed: bytes) -> None:
        """Record a signed revocation durably here, before anybody acts on it."""
        await self._publisher.enqueue(Kind.REVOCATION, jcs.loads_object(signed), vault=None, essential=True)

    async def _admitted(self, admission: Mapping[str, Any], *, essential: bool) -> None:
        await self._publisher.enqueue(Kind.ADMISSION, admission, vault=None, essential=essential)
