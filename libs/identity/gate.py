"""It is responsible for who gets through to a mesh listener: a certificate of the mesh CA, the right role, a lease.

It also serves the exchange of evidence, which every certificate of the mesh may use: without it there is no lease.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace

from teemesh.evidence.v1 import evidence_pb2, evidence_pb2_grpc

from libs.errors import Code, MeshError
from libs.identity.certificate import PEOPLE, MeshCertificate, der_of, parse, verify_issued
from libs.identity.freshness import PolicyKeeper
from libs.identity.handover import Successor, name_successor, verify_successor
from libs.identity.lease import EvidenceMismatch, Leases
from libs.identity.renewal import Credential, Identity
from libs.identity.revoked import verify_not_revoked
from libs.rpc.calls import Context
from libs.rpc.policies import ANY_ROLE, Caller, MethodRule, RoleNotAllowed, ServiceBinding, current_caller

_SERVICE = "teemesh.evidence.v1.EvidenceService"
_CERTIFICATE_CACHE = 1024
_HEARTBEAT_SECONDS = 10.0


class EvidenceUnknown(MeshError):
    """This service holds no document of that digest."""

    code = Code.NOT_FOUND
    reason = "EVIDENCE_UNKNOWN"


@dataclass(slots=True)
class _Known:
    """A certificate whose signature was checked, and the caller that it made last: neither is made for each call."""

    certificate: MeshCertificate
    caller: Caller


class MeshGate:
    """Admits callers by certificate, role and lease."""

    def __init__(self, trust_domain: str, identity: Identity, policy: PolicyKeeper, leases: Leases) -> None:
        self._trust_domain = trust_domain
        self._identity = identity
        self._policy = policy
        self._leases = leases
        self._known: dict[bytes, _Known] = {}
        """By certificate, PEM as gRPC gives it."""

    def admit(self, certificate_pem: bytes, rule: MethodRule) -> Caller:
        """Return who calls. Raises `CertificateNotAccepted`, `KeyRevoked`, `NodeRevoked`, `RoleNotAllowed`,
        `EvidenceRequired`, `PolicyStale`.
        """
        known = self._verified(certificate_pem, rule)
        caller = known.caller
        verify_not_revoked(caller.spki_sha256, caller.spiffe_id, self._policy.current)
        if not rule.admits(caller.role):
            raise RoleNotAllowed(f"role {caller.role} may not call this method")
        lease = None
        if rule.lease:
            self._policy.require_fresh()
            if caller.role not in PEOPLE:
                lease = self._leases.of(caller.spki_sha256)
        if lease is not caller.lease:
            caller = known.caller = replace(caller, lease=lease)
        return caller

    def hold(self, caller: Caller) -> AbstractContextManager[None]:
        """Cancel the call when the caller's lease ends or, without one, when its certificate does or is revoked."""
        # The lease of who has one, also where the method asks for none: it outlasts a certificate that has a successor.
        if caller.lease is not None or time.time() < self._leases.ends_at(caller.spki_sha256):
            return self._leases.hold(caller.spki_sha256)
        return self._until_certificate_ends(parse(caller.certificate_der))

    @contextmanager
    def _until_certificate_ends(self, certificate: MeshCertificate) -> Iterator[None]:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call runs in a task")
        left = certificate.not_after - time.time()
        ending = asyncio.get_running_loop().call_later(max(left, 0), task.cancel)
        try:
            with self._leases.hold_certified(certificate):
                yield
        finally:
            ending.cancel()

    def _verified(self, pem: bytes, rule: MethodRule) -> _Known:
        """Check the signature once per certificate, its validity on every call.

        No work starts on a certificate that has ended, but while a successor keeps its lease, and so what runs on it,
        the exchange of evidence goes on: the successor will have one too.
        """
        known = self._known.get(pem)
        now = time.time()
        if known is not None:
            if known.certificate.not_before - 60 <= now < known.certificate.not_after:
                return known
            if not rule.lease and now < self._leases.ends_at(known.caller.spki_sha256):
                return known
        certificate = verify_issued(der_of(pem), self._identity.ca_certificate, now)
        if certificate.trust_domain != self._trust_domain:
            raise RoleNotAllowed("certificate is of another trust domain")
        if len(self._known) >= _CERTIFICATE_CACHE:
            self._known.clear()
        known = self._known[pem] = _Known(certificate, _without_lease(certificate))
        return known


def _without_lease(certificate: MeshCertificate) -> Caller:
    return Caller(
        role=certificate.role,
        instance=certificate.instance,
        spiffe_id=certificate.spiffe_id,
        spki_sha256=certificate.spki_sha256,
        certificate_der=certificate.der,
        lease=None,
    )


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
