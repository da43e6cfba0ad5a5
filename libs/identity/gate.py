"""It is responsible for who gets through to a mesh listener: a certificate of the mesh CA, the right role, a lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from libs.identity.certificate import PEOPLE, MeshCertificate, der_of, parse, verify_issued
from libs.identity.freshness import PolicyKeeper
from libs.identity.lease import EvidenceRequired, Leases
from libs.identity.renewal import Identity
from libs.identity.revoked import verify_not_revoked
from libs.identity.streams import Streams
from libs.rpc.policies import Caller, MethodRule, RoleNotAllowed

_CERTIFICATE_CACHE = 1024


@dataclass(slots=True)
class _Known:
    """A certificate whose signature was checked, and the caller that it made last: neither is made for each call."""

    certificate: MeshCertificate
    caller: Caller


class MeshGate:
    """Admits callers by certificate, role and lease."""

    def __init__(
        self, trust_domain: str, identity: Identity, policy: PolicyKeeper, leases: Leases, streams: Streams
    ) -> None:
        self._trust_domain = trust_domain
        self._identity = identity
        self._policy = policy
        self._leases = leases
        self._streams = streams
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

    def hold(self, caller: Caller, rule: MethodRule) -> AbstractContextManager[None]:
        """Cancel the call when the caller's lease ends or, without one, when its certificate does or is revoked; and a
        stream that needs a fresh policy to begin, when that is stale.
        """
        held = self._on_its_bearer(caller)
        return self._while_fresh(held) if rule.lease and rule.long_lived else held

    def _on_its_bearer(self, caller: Caller) -> AbstractContextManager[None]:
        if caller.lease is not None:
            return self._leases.hold(caller.spki_sha256)
        if time.time() < self._leases.ends_at(caller.spki_sha256):
            return self._on_its_lease(caller)
        return self._until_certificate_ends(parse(caller.certificate_der))

    @contextmanager
    def _while_fresh(self, held: AbstractContextManager[None]) -> Iterator[None]:
        with self._streams.hold(), held:
            yield

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

    @contextmanager
    def _on_its_lease(self, caller: Caller) -> Iterator[None]:
        """The lease of who has one, where the method asks for none: it outlasts a certificate that has a successor."""
        try:
            with self._leases.hold(caller.spki_sha256):
                yield
        except asyncio.CancelledError:
            # `admit` would let the caller in again, who would then never hear that the call is over.
            if self._leases.ends_at(caller.spki_sha256) <= time.time():
                raise EvidenceRequired("the lease ended while the call ran") from None
            raise

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
