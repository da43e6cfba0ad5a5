"""It is responsible for attested sessions: one immutable document per node key, the same for every router.

The document is a function of the node's evidence and its appraisal, so each router that appraised the node itself can
compare what it says, and anyone with the document can repeat the appraisal.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from libs.aci.session import TlsBinding, session_document, session_id
from libs.identity.lease import Lease
from services.registry.store import Bucket, StoreConflict, Versioned

VERIFIER_ID = "teemesh/appraisal/v1"
_ID_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class SealedSession:
    """A session document and the id that is its digest."""

    session_id: str
    document: bytes


class Sessions:
    """Session documents by id, and the id by node key."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def of(self, node: Lease) -> SealedSession | None:
        """Return the session that was sealed for a node's key, if one was. Raises `StoreUnavailable`."""
        return await self._named_by(await self._bucket.get(_key_of(node)))

    async def seal(self, node: Lease, session: SealedSession) -> SealedSession:
        """Store a session as the one for a node's key, and return the one that is.

        The first registry to seal one for a key decides its bytes; all others return the same. Raises
        `StoreUnavailable`.
        """
        with suppress(StoreConflict):  # The id is the content's digest: what is there already is this very document.
            await self._bucket.put(f"session.{session.session_id}", session.document, 0)
        key, value = _key_of(node), session.session_id.encode("ascii")
        while True:
            index = await self._bucket.get(key)
            if (known := await self._named_by(index)) is not None:
                return known
            with suppress(StoreConflict):  # Then another registry was first, and its session counts.
                await self._bucket.put(key, value, 0 if index is None else index.revision)

    async def _named_by(self, index: Versioned | None) -> SealedSession | None:
        if index is None:
            return None
        identifier = index.value.decode("ascii", errors="replace")
        document = await self.get(identifier)
        return None if document is None else SealedSession(identifier, document)

    async def get(self, identifier: str) -> bytes | None:
        """Return a session's document. Raises `StoreUnavailable`."""
        if len(identifier) != _ID_CHARACTERS:
            return None
        stored = await self._bucket.get(f"session.{identifier}")
        return None if stored is None else stored.value


def draft_session(node: Lease, endpoint: str) -> SealedSession:
    """Say of a node's key, at an endpoint, what its appraisal found."""
    document = _document(node, endpoint)
    return SealedSession(session_id(document), document)


def _key_of(node: Lease) -> str:
    return f"key.{node.certificate.spki_sha256.hex()}"


def _document(node: Lease, endpoint: str) -> bytes:
    appraisal = node.appraisal
    origin = f"https://{endpoint}"
    return session_document(
        upstream_name=node.certificate.spiffe_id,
        endpoint=origin,
        verifier_id=VERIFIER_ID,
        established_at=appraisal.appraised_at,
        expires_at=int(node.until),
        bindings=(TlsBinding(origin=origin, spki_sha256=node.certificate.spki_sha256.hex()),),
        claims=appraisal.claims,
        evidence=node.evidence.document,
        extra={
            "policy_version": appraisal.policy_version,
            "tcb_status": appraisal.tcb_status,
            "vendor_root_sha256": appraisal.vendor_root_sha256.hex(),
            **appraisal.measurement.to_json(),
        },
    )
