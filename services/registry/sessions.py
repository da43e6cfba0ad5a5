"""It is responsible for attested sessions: one immutable document per admission, the same for every router.

One admission is that of one key under one policy version, or a later one, until it is withdrawn. A node that was away
and comes back while no newer policy was put in force comes back under the admission that it had.

The document is a function of the node's evidence and its appraisal, so each router that appraised the node itself can
compare what it says, and anyone with the document can repeat the appraisal. Its digest is its name, and is computed
again whenever it is read: what somebody changed in the store is not given out.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass

import structlog

from libs.aci.session import TlsBinding, session_document, session_id, verify_session
from libs.audit.session import VERIFIER_ID
from libs.errors import Code, MeshError
from libs.identity.lease import Lease
from services.registry.store import Bucket, StoreConflict, Versioned
from services.registry.summaries import Summary, summarise

SUMMARY_PREFIX = "about."
log = structlog.get_logger()
_POLICY_VERSION = "policy_version"
_ID = re.compile(r"[0-9a-f]{64}")


class SessionDamaged(MeshError):
    """What the store holds under a session's id is another document: somebody changed it."""

    code = Code.DATA_LOSS
    reason = "SESSION_DAMAGED"


@dataclass(frozen=True, slots=True)
class SealedSession:
    """A session document and the id that is its digest."""

    session_id: str
    document: bytes


class Sessions:
    """Session documents by id, and by node key the id of the one that its admission stands for."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def of(self, node: Lease) -> SealedSession | None:
        """Return the session of a node's admission, if it has one. Raises `StoreUnavailable`."""
        return await self._named_by(await self._bucket.get(_key_of(node)), node)

    async def seal(self, node: Lease, session: SealedSession) -> SealedSession:
        """Store a session as the one of a node's admission, and return the one that is.

        The first registry to seal one for an admission decides its bytes; all others return the same. Raises
        `StoreUnavailable`.
        """
        await self._keep(session, summarise(session.session_id, session.document, node))
        key, value = _key_of(node), session.session_id.encode("ascii")
        while True:
            index = await self._bucket.get(key)
            if (known := await self._named_by(index, node)) is not None:
                return known
            with suppress(StoreConflict):  # Then another registry was first, and its session counts.
                await self._bucket.put(key, value, 0 if index is None else index.revision)

    async def end_admission(self, spki_sha256: str, identifier: str) -> None:
        """Let a key's session stand for no admission any more: the next one is another. The document is kept.

        Raises `StoreUnavailable`.
        """
        key = _index_key(spki_sha256)
        index = await self._bucket.get(key)
        if index is not None and index.value == identifier.encode():
            await self._bucket.erase(key, index.revision)

    async def _named_by(self, index: Versioned | None, node: Lease) -> SealedSession | None:
        if index is None:
            return None
        identifier = index.value.decode("ascii", errors="replace")
        try:
            document = await self.get(identifier)
            if document is None or _policy_version(identifier, document) < node.appraisal.policy_version:
                return None
        except SessionDamaged as error:
            log.error("a session is sealed anew", session=identifier, reason=error.reason)
            return None
        return SealedSession(identifier, document)

    async def _keep(self, session: SealedSession, summary: Summary) -> None:
        """Store a document, after what lets it be listed and let go: what stays of a crash in between is small."""
        with suppress(StoreConflict):  # Both are functions of what the id names: they are there already.
            await self._bucket.put(SUMMARY_PREFIX + session.session_id, summary.encode(), 0)
        key = _document_key(session.session_id)
        stored = await self._bucket.get(key)
        if stored is None or stored.value != session.document:
            with suppress(StoreConflict):
                await self._bucket.put(key, session.document, 0 if stored is None else stored.revision)

    async def get(self, identifier: str) -> bytes | None:
        """Return a session's document, or None if there is none. Raises `SessionDamaged`, `StoreUnavailable`."""
        if not _ID.fullmatch(identifier):
            return None
        stored = await self._bucket.get(_document_key(identifier))
        if stored is None:
            return None
        if hashlib.sha256(stored.value).hexdigest() != identifier:
            raise SessionDamaged("the stored session is not the document that its id names")
        return stored.value

    async def has(self, identifier: str) -> bool:
        """Say whether a session is kept, undamaged or not. Raises `StoreUnavailable`."""
        return await self._bucket.get(_document_key(identifier)) is not None

    async def forget(self, summary: Summary) -> None:
        """Remove a session, its summary last: what is left of a crash in between is removed the next time.

        Raises `StoreUnavailable`.
        """
        await self.end_admission(summary.spki_sha256, summary.session_id)
        for key in (_document_key(summary.session_id), SUMMARY_PREFIX + summary.session_id):
            if (stored := await self._bucket.get(key)) is not None:
                await self._bucket.erase(key, stored.revision)


def draft_session(node: Lease, endpoint: str) -> SealedSession:
    """Say of a node's key, at an endpoint, what its appraisal found."""
    document = _document(node, endpoint)
    return SealedSession(session_id(document), document)


def _document_key(identifier: str) -> str:
    return f"session.{identifier}"


def _key_of(node: Lease) -> str:
    return _index_key(node.certificate.spki_sha256.hex())


def _index_key(spki_sha256: str) -> str:
    return f"key.{spki_sha256}"


def _policy_version(identifier: str, document: bytes) -> int:
    """The policy that a session was sealed under; 0, which is before all, for what does not say."""
    try:
        version = verify_session(document, identifier).extra.get(_POLICY_VERSION)
    except MeshError as error:
        log.error("a session is sealed anew", session=identifier, reason=error.reason)
        return 0
    return version if isinstance(version, int) else 0


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
            _POLICY_VERSION: appraisal.policy_version,
            "tcb_status": appraisal.tcb_status,
            "vendor_root_sha256": appraisal.vendor_root_sha256.hex(),
            **appraisal.measurement.to_json(),
        },
    )
