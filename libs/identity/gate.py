"""It is responsible for who gets through to a mesh listener: a certificate of the mesh CA, the right role, a lease.

It also serves the exchange of evidence, which every certificate of the mesh may use: without it there is no lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import PEOPLE, MeshCertificate, der_of, parse, verify_issued
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import EvidenceMismatch, Lease, Leases
from libs.identity.renewal import Identity
from libs.identity.revoked import verify_not_revoked
from libs.rpc.calls import Context
from libs.rpc.policies import ANY_ROLE, Caller, MethodRule, RoleNotAllowed, ServiceBinding, current_caller

_SERVICE = "teemesh.evidence.v1.EvidenceService"
_CERTIFICATE_CACHE = 1024


class EvidenceUnknown(MeshError):
    """This service holds no document of that digest."""

    code = Code.NOT_FOUND
    reason = "EVIDENCE_UNKNOWN"


class MeshGate:
    """Admits callers by certificate, role and lease."""

    def __init__(self, trust_domain: str, identity: Identity, policy: PolicyKeeper, leases: Leases) -> None:
        self._trust_domain = trust_domain
        self._identity = identity
        self._policy = policy
        self._leases = leases
        self._parsed: dict[bytes, MeshCertificate] = {}

    def admit(self, certificate_pem: bytes, rule: MethodRule) -> Caller:
        """Return who calls. Raises `CertificateNotAccepted`, `KeyRevoked`, `NodeRevoked`, `RoleNotAllowed`,
        `EvidenceRequired`, `PolicyStale`.
        """
        certificate = self._verified(certificate_pem)
        verify_not_revoked(certificate.spki_sha256, certificate.spiffe_id, self._policy.current)
        if not rule.admits(certificate.role):
            raise RoleNotAllowed(f"role {certificate.role} may not call this method")
        lease = None
        if rule.lease:
            self._policy.require_fresh()
            if certificate.role not in PEOPLE:
                lease = self._leases.of(certificate)
        return Caller(
            role=certificate.role,
            instance=certificate.instance,
            spiffe_id=certificate.spiffe_id,
            spki_sha256=certificate.spki_sha256,
            certificate_der=certificate.der,
            lease=lease,
        )

    @contextmanager
    def hold(self, caller: Caller) -> Iterator[None]:
        """Cancel the call when the caller's lease ends or, without one, when its certificate does or is revoked."""
        if isinstance(caller.lease, Lease):
            with self._leases.hold(caller.lease.certificate):
                yield
            return
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call runs in a task")
        certificate = parse(caller.certificate_der)
        ending = asyncio.get_running_loop().call_later(max(certificate.not_after - time.time(), 0), task.cancel)
        try:
            with self._leases.hold_certified(certificate):
                yield
        finally:
            ending.cancel()

    def _verified(self, pem: bytes) -> MeshCertificate:
        """Check the signature once per certificate, its validity on every call."""
        certificate = self._parsed.get(pem)
        now = time.time()
        if certificate is None or not certificate.not_before - 60 <= now < certificate.not_after:
            certificate = verify_issued(der_of(pem), self._identity.ca_certificate, now)
            if certificate.trust_domain != self._trust_domain:
                raise RoleNotAllowed("certificate is of another trust domain")
            if len(self._parsed) >= _CERTIFICATE_CACHE:
                self._parsed.clear()
            self._parsed[pem] = certificate
        return certificate


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
        evidence = self._identity.current.evidence
        if request.digest and request.digest != evidence.digest:
            raise EvidenceUnknown("no document of that digest here")
        return evidence_pb2.GetEvidenceResponse(document=evidence.document)

    async def PresentEvidence(  # noqa: N802
        self,
        request: evidence_pb2.PresentEvidenceRequest,
        context: Context,
    ) -> evidence_pb2.PresentEvidenceResponse:
        certificate = parse(current_caller().certificate_der)
        if certificate.evidence_digest is None:
            raise EvidenceMismatch("a certificate of a person names no evidence")
        lease = self._leases.open(certificate, request.document)
        return evidence_pb2.PresentEvidenceResponse(lease_until_ms=int(lease.until * 1000))


def evidence_binding(servicer: EvidenceServicer) -> ServiceBinding:
    """The exchange of evidence: any certificate of the mesh, no lease."""
    rule = MethodRule(roles=ANY_ROLE, lease=False)
    return ServiceBinding(
        name=_SERVICE,
        add=lambda server: evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(servicer, server),
        methods={f"/{_SERVICE}/GetEvidence": rule, f"/{_SERVICE}/PresentEvidence": rule},
    )
