"""It is responsible for the registry's own entries in the ledger: whom it admitted, refused and withdrew.

The session that proves why a node was admitted is an entry of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from libs import jcs
from libs.events.publish import Publisher
from libs.identity.lease import Lease
from libs.transparency.leaf import Kind
from services.registry.providers import Provider
from services.registry.sessions import SealedSession

_COUNT_VERSION = 1


class Admissions:
    """Writes through the outbox: an admission is durable here before the node is listed."""

    def __init__(self, publisher: Publisher, policy_version: Callable[[], int]) -> None:
        self._publisher = publisher
        self._policy_version = policy_version

    async def record(self, node: Lease, session: SealedSession) -> None:
        """Record a new session and the admission that it stands for."""
        await self._publisher.enqueue(Kind.SESSION, jcs.loads_object(session.document), vault=None)
        await self._write(
            {
                "decision": "admitted",
                "spiffe_id": node.certificate.spiffe_id,
                "session_id": session.session_id,
                "evidence_sha256": node.evidence.digest.hex(),
                "policy_version": node.appraisal.policy_version,
            }
        )

    async def refused(self, spiffe_id: str, reason: str, *, repeats: int = 0, since_ms: int = 0) -> None:
        """Record that a node was refused, or how often it was again since the last record. Raises `OutboxFull`."""
        again = {"passed_over": {"v": _COUNT_VERSION, "count": repeats, "since_ms": since_ms}} if repeats else {}
        await self._write(
            {
                "decision": "refused",
                "spiffe_id": spiffe_id,
                "reason": reason,
                "policy_version": self._policy_version(),
                **again,
            }
        )

    async def withdrawn(self, provider: Provider, reason: str) -> None:
        """Record that a node was taken off the list. Raises `OutboxFull`."""
        await self._write(
            {
                "decision": "withdrawn",
                "spiffe_id": provider.spiffe_id,
                "session_id": provider.session_id,
                "evidence_sha256": provider.evidence_digest,
                "reason": reason,
                "policy_version": self._policy_version(),
            }
        )

    async def _write(self, body: dict[str, Any]) -> None:
        await self._publisher.enqueue(Kind.ADMISSION, body, vault=None)
