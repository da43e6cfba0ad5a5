"""It is responsible for one node that the registry lists: what is said of it, and what this router's own appraisal of
it found, over the very channel that prompts will take.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from teemesh.registry.v1 import registry_pb2

from libs.aci import whole_answers
from libs.aci.endpoints import offered
from libs.aci.session import Citable, Session, verify_session
from libs.errors import Code, MeshError
from libs.identity.lease import Lease
from libs.identity.link import Link
from libs.identity.peers import Peer
from services.router.routing.confirmation import confirm
from services.router.routing.selection import Candidate, Load

_ROLE = "node"
_CALL_SECONDS = 5.0
_ENDPOINT = re.compile(r"([^:/@\s]{1,253}|\[[0-9a-f:.]{2,45}\]):([1-9][0-9]{0,4})")
_MAX_PORT = 65535
_NOT_VERIFIED = "NOT_VERIFIED_YET"
_NOT_CONNECTED = "NOT_CONNECTED"


class EndpointMalformed(MeshError):
    """The registry lists a node at what is no host and port."""

    code = Code.INVALID_ARGUMENT
    reason = "ENDPOINT_MALFORMED"


class NodeNameMismatch(MeshError):
    """The registry lists a node under another name than its certificate's."""

    code = Code.PERMISSION_DENIED
    reason = "NODE_NAME_MISMATCH"


@dataclass(frozen=True, slots=True)
class Upstream:
    """A node that may be used: its place in the selection, the link to the key that was verified, and the session that
    shows it to clients.
    """

    candidate: Candidate
    peer: Peer
    link: Link
    session: Session
    citable: Citable
    """The session as sealed, and as it is listed."""
    gpus: frozenset[str]
    """The GPUs that its evidence shows, by UEID."""

    @property
    def lease(self) -> Lease:
        return self.link.lease

    @property
    def needs_gpu(self) -> bool:
        """Whether policy requires a GPU of it: one that shows none would not have been admitted then."""
        return bool(self.gpus) and self.lease.policy.rules(_ROLE).gpu_required

    @property
    def gives_whole_answers(self) -> bool:
        """Whether it answers what is not streamed in one message."""
        return whole_answers.given_by(self.lease.appraisal.workload_claims)


@dataclass(slots=True)
class Listed:
    """A node as it is listed. What was verified is listed anew when it changes; all else changes in place."""

    provider: registry_pb2.Provider
    peer: Peer
    admitted: Upstream | None = None
    refusal: str = _NOT_VERIFIED

    @property
    def name(self) -> str:
        return self.provider.spiffe_id

    @property
    def is_live(self) -> bool:
        """The link that it was admitted on may still be used."""
        return self.admitted is not None and self.peer.is_live(self.admitted.link)

    @property
    def is_current(self) -> bool:
        """It is live, and nothing that it was admitted on has a successor."""
        admitted = self.admitted
        return (
            admitted is not None
            and self.is_live
            and self.peer.is_newest(admitted.link)
            and self.provider.session_id.hex() == admitted.session.session_id
        )

    @property
    def why(self) -> str:
        """Why it is not live. One that was admitted lost its connection, to its end or to a policy."""
        return self.refusal if self.admitted is None else self.peer.refusal or _NOT_CONNECTED

    def serves(self, model: str) -> bool:
        return any(served.id == model for served in self.provider.models)

    def is_about(self, provider: registry_pb2.Provider) -> bool:
        """Whether a verification of the one is a verification of the other: all else may change under it."""
        return _verified_part(self.provider) == _verified_part(provider)

    def update(self, provider: registry_pb2.Provider) -> None:
        """Take what else the registry says of it now: load and drain."""
        self.provider = provider
        if (admitted := self.admitted) is not None:
            self.admitted = replace(admitted, candidate=_candidate(provider, admitted.lease, admitted.session))

    async def appraised(self, sealed: Callable[[str], Awaitable[bytes]]) -> Upstream:
        """Return the node as this router finds it; `sealed` gives the session of an id.

        Raises why it is not to be used: `EndpointMalformed`, `NodeNameMismatch`, `SessionNotOurs`, and what its
        appraisal or the registry refuses with.
        """
        provider = self.provider
        _check_endpoint(provider.endpoint)
        link = await self.peer.link(_CALL_SECONDS)
        if (certified := link.lease.certificate.spiffe_id) != provider.spiffe_id:
            raise NodeNameMismatch(f"{certified} answers where the registry lists {provider.spiffe_id[:100]}")
        document = await sealed(provider.session_id.hex())
        session = verify_session(document, provider.session_id.hex())
        confirm(session, provider.endpoint, link.lease, time.time())
        # Its load may have changed meanwhile; a change of anything that was verified makes another of these.
        return Upstream(
            _candidate(self.provider, link.lease, session),
            self.peer,
            link,
            session,
            Citable.of(document),
            link.lease.evidence.gpu_ueids,
        )


def _check_endpoint(endpoint: str) -> None:
    """Raise `EndpointMalformed` for what cannot be connected to: the registry is not trusted to have checked."""
    parts = _ENDPOINT.fullmatch(endpoint)
    if parts is None or int(parts[2]) > _MAX_PORT:
        raise EndpointMalformed("a node's endpoint must be host:port")


def _verified_part(provider: registry_pb2.Provider) -> tuple[bytes, str, bytes]:
    return provider.spki_sha256, provider.endpoint, provider.session_id


def _candidate(provider: registry_pb2.Provider, lease: Lease, session: Session) -> Candidate:
    """What the registry says about load and drain, and the lease's own word about everything that matters."""
    appraisal = lease.appraisal
    claimed = appraisal.workload_claims.get("models", [])
    region = appraisal.workload_claims.get("region")
    return Candidate(
        spiffe_id=lease.certificate.spiffe_id,
        target=provider.endpoint,
        models={model["id"]: model["weights_sha256"] for model in claimed},
        evidence_digest=lease.evidence.digest.hex(),
        session_id=session.session_id,
        lease_until_ms=min(provider.lease_until_ms, int(lease.until * 1000), session.expires_at * 1000),
        load=Load(provider.load.running_requests, provider.load.waiting_requests, provider.load.capacity),
        endpoints=offered(appraisal.workload_claims.get("endpoints")),
        draining=provider.draining,
        tee_type=appraisal.tee_type,
        has_gpu=appraisal.gpu is not None,
        region=region if isinstance(region, str) else None,
        evidence_time_ms=lease.evidence.challenge.issued_at * 1000,
    )
