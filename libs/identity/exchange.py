"""It is responsible for the exchange of evidence, which every certificate of the mesh may use: without it no lease.

Each side shows what its certificate names and, when it renews, what its next one does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import parse
from libs.identity.handover import Successor, name_successor, verify_successor
from libs.identity.lease import EvidenceMismatch, Leases
from libs.identity.renewal import Credential, Identity
from libs.rpc.calls import Context
from libs.rpc.policies import ANY_ROLE, MethodRule, ServiceBinding, current_caller

_SERVICE = "teemesh.evidence.v1.EvidenceService"
_HEARTBEAT_SECONDS = 10.0


class EvidenceUnknown(MeshError):
    """This service holds no document of that digest."""

    code = Code.NOT_FOUND
    reason = "EVIDENCE_UNKNOWN"


class EvidenceServicer(evidence_pb2_grpc.EvidenceServiceServicer):
    """Gives out this service's evidence and takes its callers'."""

    def __init__(self, identity: Identity, leases: Leases) -> None:
        self._identity = identity
        self._leases = leases

    async def GetEvidence(  # noqa: N802
        self,
        request: evidence_pb2.GetEvidenceRequest,
        context: Context,
    ) -> evidence_pb2.GetEvidenceResponse:
        for credential in self._identity.held:
            if request.digest in (b"", credential.evidence.digest):
                return evidence_pb2.GetEvidenceResponse(document=credential.evidence.document)
        raise EvidenceUnknown("no document of that digest here")

    async def PresentEvidence(  # noqa: N802
        self,
        request: evidence_pb2.PresentEvidenceRequest,
        context: Context,
    ) -> evidence_pb2.PresentEvidenceResponse:
        certificate = parse(current_caller().certificate_der)
        if certificate.evidence_digest is None:
            raise EvidenceMismatch("a certificate of a person names no evidence")
        if request.next_certificate:
            successor = Successor(request.next_certificate, request.document, request.signature)
            following = verify_successor(successor, certificate, self._identity.ca_certificate, time.time())
            lease = self._leases.extend(certificate.spki_sha256, following, successor.document)
        else:
            lease = self._leases.open(certificate, request.document)
        return evidence_pb2.PresentEvidenceResponse(lease_until_ms=int(lease.until * 1000))

    async def WatchRenewals(  # noqa: N802
        self,
        request: evidence_pb2.WatchRenewalsRequest,
        context: Context,
    ) -> AsyncIterator[evidence_pb2.WatchRenewalsResponse]:
        # Held until the stream ends: only this key can speak to who was shown it, however many follow.
        shown = announced = self._identity.holder_of(request.spki_sha256)
        while True:
            if (current := self._identity.current) is announced:
                yield evidence_pb2.WatchRenewalsResponse()
            else:
                successor = name_successor(shown, current)
                announced = current
                yield evidence_pb2.WatchRenewalsResponse(
                    successor=evidence_pb2.Successor(
                        certificate=successor.certificate,
                        document=successor.document,
                        signature=successor.signature,
                    )
                )
            await self._until_renewed(announced)

    async def _until_renewed(self, announced: Credential) -> None:
        """Wait for another credential than the one given, or for as long as may pass without a sign of life."""
        if self._identity.current is announced:
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT_SECONDS):
                    await self._identity.renewed()


def evidence_binding(servicer: EvidenceServicer) -> ServiceBinding:
    """The exchange of evidence: any certificate of the mesh; a lease only for the stream, which ends with it."""
    rule = MethodRule(roles=ANY_ROLE, lease=False)
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(servicer, server),
        methods={
            f"/{_SERVICE}/GetEvidence": rule,
            f"/{_SERVICE}/PresentEvidence": rule,
            f"/{_SERVICE}/WatchRenewals": MethodRule(roles=ANY_ROLE, long_lived=True),
        },
    )
