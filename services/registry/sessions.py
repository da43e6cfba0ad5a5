"""It is responsible for attested sessions: one immutable document per node key, the same for every router.

The document is a function of the node's evidence and its appraisal, so each router that appraised the node itself can
compare what it says, and anyone with the document can repeat the appraisal.
"""

from __future__ import annotations

from libs.aci.session import TlsBinding, session_document, session_id
from libs.identity.lease import Lease
from services.registry.store import Bucket, StoreConflict

VERIFIER_ID = "teemesh/appraisal/v1"


class Sessions:
    """Session documents by id, and the id by node key."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def seal(self, node: Lease, endpoint: str) -> tuple[str, bytes, bool]:
        """Return (id, document, whether it is new) of the session for a node's key at an endpoint.

        The first registry to seal one for a key decides its bytes; all others return the same.
        """
        by_key = f"key.{node.certificate.spki_sha256.hex()}"
        if (known := await self._bucket.get(by_key)) is not None:
            identifier = known.value.decode("ascii")
            if (stored := await self._bucket.get(f"session.{identifier}")) is not None:
                return identifier, stored.value, False
        document = _document(node, endpoint)
        identifier = session_id(document)
        try:
            await self._bucket.put(f"session.{identifier}", document, 0)
            await self._bucket.put(by_key, identifier.encode("ascii"), known.revision if known else 0)
        except StoreConflict:
            return await self.seal(node, endpoint)
        return identifier, document, True

    async def get(self, identifier: str) -> bytes | None:
        stored = await self._bucket.get(f"session.{identifier}")
        return None if stored is None else stored.value


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
