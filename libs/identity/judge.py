"""It is responsible for what a client believes of a server now: by this service's CA, policy and clock."""

from __future__ import annotations

import time
from collections.abc import Callable

from libs.identity.certificate import MeshCertificate, verify_issued
from libs.identity.freshness import PolicyKeeper
from libs.identity.handover import Successor, verify_successor
from libs.identity.lease import Lease, appraise_peer, verify_not_named
from libs.identity.renewal import Identity
from libs.identity.revoked import verify_not_revoked
from libs.policy.document import Policy


class Judge:
    """Every extension of trust to a server is one of these judgements."""

    def __init__(
        self,
        identity: Identity,
        policy: PolicyKeeper,
        ca_spki: Callable[[], bytes],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._policy = policy
        self._ca_spki = ca_spki
        self.clock = clock

    @property
    def policy(self) -> Policy:
        """The one that judgements are made under now."""
        return self._policy.current

    def certificate(self, der: bytes) -> MeshCertificate:
        """Raises `CertificateNotAccepted`."""
        return verify_issued(der, self._identity.ca_certificate, self.clock())

    def lease(self, certificate: MeshCertificate, document: bytes) -> Lease:
        """Return the lease that a document earns its certificate now. Raises what `appraise_peer` raises."""
        return appraise_peer(certificate, document, self._policy.current, self._ca_spki(), self.clock())

    def require_not_revoked(self, certificate: MeshCertificate) -> None:
        """Raises `KeyRevoked`, `NodeRevoked`."""
        verify_not_revoked(certificate.spki_sha256, certificate.spiffe_id, self._policy.current)

    def require_not_named(self, lease: Lease, shown: MeshCertificate) -> None:
        """Raises what `verify_not_named` raises."""
        verify_not_named(lease, shown.spki_sha256, self._policy.current)

    def successor(self, successor: Successor, shown: MeshCertificate) -> Lease:
        """Return the lease that a next certificate earns. Raises what `verify_successor` and `appraise_peer` raise."""
        following = verify_successor(successor, shown, self._identity.ca_certificate, self.clock())
        return self.lease(following, successor.document)
