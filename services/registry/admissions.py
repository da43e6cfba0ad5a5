"""It is responsible for the registry's own entries in the ledger: whom it admitted, and the session that proves why."""

from __future__ import annotations

from libs import jcs
from libs.events.publish import Publisher
from libs.identity.lease import Lease
from libs.transparency.leaf import Kind
from services.registry.sessions import SealedSession


class Admissions:
    """Writes through the outbox: an admission is durable here before the node is listed."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def record(self, node: Lease, session: SealedSession) -> None:
        """Record a new session and the admission that it stands for."""
        await self._publisher.enqueue(Kind.SESSION, jcs.loads_object(session.document), vault=None)
        await self._publisher.enqueue(
            Kind.ADMISSION,
            {
                "decision": "admitted",
                "spiffe_id": node.certificate.spiffe_id,
                "session_id": session.session_id,
                "evidence_sha256": node.evidence.digest.hex(),
                "policy_version": node.appraisal.policy_version,
            },
            vault=None,
        )
