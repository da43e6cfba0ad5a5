"""It is responsible for the nodes that this router may use: each known from the registry, each appraised here.

The registry's word puts a node on the list; only this router's own appraisal, over the very channel that prompts will
take, makes it a candidate. The session that receipts will cite must say what that appraisal says.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import structlog
from teemesh.registry.v1 import registry_pb2, registry_pb2_grpc

from libs.aci.session import Session, verify_session
from libs.errors import Code, MeshError
from libs.identity.any_peer import Channels
from libs.identity.lease import Lease
from libs.identity.link import Link
from libs.identity.member import Member
from libs.identity.peers import Peer
from libs.rpc.errors import remote_errors
from services.router.confirmation import confirm
from services.router.constraints import Constraints
from services.router.errors import UpstreamVerificationFailed
from services.router.ranking import Ranking
from services.router.selection import Candidate, Load, busy, select, suits
from services.router.session_documents import SessionDocuments

_RECONCILE_SECONDS = 1.0
_CALL_SECONDS = 5.0
_WATCH_SILENCE_SECONDS = 30.0
_MAX_LISTED = 10_000
_MAX_VERIFYING = 64
_ENDPOINT = re.compile(r"([^:/@\s]{1,253}|\[[0-9a-f:.]{2,45}\]):([1-9][0-9]{0,4})")
_MAX_PORT = 65535
_NOT_VERIFIED = "NOT_VERIFIED_YET"
_NOT_CONNECTED = "NOT_CONNECTED"

log = structlog.get_logger()


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
    document: bytes
    """The session as sealed."""

    @property
    def lease(self) -> Lease:
        return self.link.lease


@dataclass(slots=True)
class _Known:
    provider: registry_pb2.Provider
    peer: Peer
    admitted: Upstream | None = None
    refusal: str = _NOT_VERIFIED

    @property
    def why(self) -> str:
        """Why it is not live. One that was admitted lost its connection, to its end or to a policy."""
        return self.refusal if self.admitted is None else self.peer.refusal or _NOT_CONNECTED

    def serves(self, model: str) -> bool:
        return any(served.id == model for served in self.provider.models)


class Upstreams:
    """All nodes that the registry lists, and which of them this router has verified."""

    def __init__(self, member: Member, registry: Channels, max_listed: int = _MAX_LISTED) -> None:
        """So many listed nodes are considered at most: a registry can name any number that there are not."""
        self._member = member
        self._registry = registry
        self._max_listed = max_listed
        self._known: dict[str, _Known] = {}
        self._dropped: dict[str, _Known] = {}
        """Nodes that the registry listed once, for what may still be said of them."""
        self._endpoints: set[str] = set()
        """Wherever a node was ever said to be, until that is forgotten."""
        self._verifying = asyncio.Semaphore(_MAX_VERIFYING)
        self._in_flight: Counter[str] = Counter()
        self._sessions = SessionDocuments(registry)
        self._choice = random.SystemRandom()
        self._ranking = Ranking(self._choice)
        self._changed = asyncio.Event()

    def choose(self, model: str, constraints: Constraints, tenant_id: str, tried: frozenset[str]) -> Upstream:
        """Return the node to use. Raises `ModelNotFound`, `SessionNotAccepted`, `TenantConstraintsUnmet`,
        `UpstreamVerificationFailed`.
        """
        policy = self._member.policy.require_fresh()
        tenant, now_ms = policy.constraints.of(tenant_id), int(time.time() * 1000)
        for name in self._ranking.of(model):
            upstream = self._known[name].admitted
            if (
                upstream is not None
                and name not in tried
                and suits(
                    upstream.candidate,
                    model=model,
                    constraints=constraints,
                    tenant=tenant,
                    allowed_models=policy.models,
                    now_ms=now_ms,
                )
                and self._is_live(self._known[name])
            ):
                return upstream
        # Nobody may serve it. The selection itself says why.
        live = {upstream.candidate.spiffe_id: upstream for upstream in self._live()}
        try:
            chosen = select(
                [upstream.candidate for upstream in live.values()],
                model=model,
                constraints=constraints,
                tenant=tenant,
                allowed_models=policy.models,
                now_ms=now_ms,
                choice=self._choice,
                in_flight=self._in_flight,
                excluded=tried,
            )
        except UpstreamVerificationFailed as error:
            raise UpstreamVerificationFailed(str(error), self._why_none(model)) from error
        return live[chosen.spiffe_id]

    @contextmanager
    def using(self, upstream: Upstream) -> Iterator[None]:
        """Count a request as this node's while it runs."""
        name = upstream.candidate.spiffe_id
        self._in_flight[name] += 1
        self._rank(name)
        try:
            yield
        finally:
            self._in_flight[name] -= 1
            self._rank(name)

    def current_sessions(self, upstream_name: str | None, model: str | None) -> list[bytes]:
        """The session documents that could be cited now, newest first (ACI section 8.1)."""
        chosen = [
            upstream
            for upstream in self._live()
            if upstream_name in (None, upstream.candidate.spiffe_id)
            and (model is None or model in upstream.candidate.models)
        ]
        newest_first = sorted(chosen, key=lambda upstream: -upstream.lease.appraisal.appraised_at)
        return [upstream.document for upstream in newest_first]

    async def session(self, session_id: str) -> bytes:
        """Return a session document, current or past. Raises the registry's `SESSION_UNKNOWN`."""
        return await self._sessions.get(session_id)

    def candidates(self) -> list[Candidate]:
        """The nodes that are verified and live now."""
        return [upstream.candidate for upstream in self._live()]

    def weights(self, tenant_id: str) -> dict[str, str]:
        """The models that a verified node serves now, of those for this tenant: id to SHA-256 of the weights, hex."""
        tenant = self._member.policy.current.constraints.of(tenant_id)
        return {
            model: weights
            for upstream in self._live()
            for model, weights in upstream.candidate.models.items()
            if tenant.allows_weights(model, weights)
        }

    async def follow(self) -> None:
        """Follow the registry for ever. When it is away the last list stands, and its leases run out by themselves."""
        while True:
            try:
                await self._watch()
            except MeshError as error:
                log.warning("no watch on the registry", reason=error.reason, detail=str(error))
            await asyncio.sleep(_RECONCILE_SECONDS)

    async def reconcile(self) -> None:
        """Verify what is new or has lost its lease, for ever."""
        while True:
            await self.verify()
            try:
                async with asyncio.timeout(_RECONCILE_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()

    async def verify(self) -> None:
        """Verify, once, what is new, has lost its lease, or is reached by a newer link or under a newer key."""
        async with asyncio.TaskGroup() as tasks:
            for known in list(self._known.values()):
                if not self._is_current(known):
                    tasks.create_task(self._verify_in_turn(known))

    def take(self, event: registry_pb2.WatchResponse) -> None:
        """Take the registry's word on which nodes there are."""
        match event.WhichOneof("event"):
            case "snapshot":
                listed = {provider.spiffe_id for provider in event.snapshot.providers}
                for gone in set(self._known) - listed:
                    self._drop(gone)
                for provider in event.snapshot.providers:
                    self._list(provider)
            case "changed":
                self._list(event.changed)
            case "ended":
                self._drop(event.ended)
            case "changes":
                for provider in event.changes.changed:
                    self._list(provider)
                for gone in event.changes.ended:
                    self._drop(gone)

    def _live(self) -> list[Upstream]:
        now_ms = time.time() * 1000
        admitted = [known.admitted for known in self._known.values() if known.admitted and self._is_live(known)]
        return [upstream for upstream in admitted if upstream.candidate.lease_until_ms > now_ms]

    def _is_live(self, known: _Known) -> bool:
        """The link that it was admitted on may still be used."""
        return known.admitted is not None and known.peer.is_live(known.admitted.link)

    def _is_current(self, known: _Known) -> bool:
        """It is live, and nothing that it was admitted on has a successor."""
        admitted = known.admitted
        return (
            admitted is not None
            and self._is_live(known)
            and known.peer.is_newest(admitted.link)
            and known.provider.session_id.hex() == admitted.session.session_id
        )

    def _why_none(self, model: str) -> str | None:
        """Why those that would serve the model may not, also when the registry has dropped them for it already."""
        listed = [known.why for known in self._known.values() if known.serves(model) and not self._is_live(known)]
        dropped = [known.peer.refusal for known in self._dropped.values() if known.serves(model)]
        return ", ".join(sorted({why for why in (*listed, *dropped) if why is not None})) or None

    async def _verify_in_turn(self, known: _Known) -> None:
        async with self._verifying:
            # The registry may have said something else of it meanwhile.
            if self._known.get(known.provider.spiffe_id) is known:
                await self._verify(known)

    async def _verify(self, known: _Known) -> None:
        provider = known.provider
        try:
            _check_endpoint(provider.endpoint)
            link = await known.peer.link(_CALL_SECONDS)
            if (certified := link.lease.certificate.spiffe_id) != provider.spiffe_id:
                raise NodeNameMismatch(f"{certified} answers where the registry lists {provider.spiffe_id[:100]}")
            document = await self.session(provider.session_id.hex())
            session = verify_session(document, provider.session_id.hex())
            confirm(session, provider.endpoint, link.lease, time.time())
        except MeshError as error:
            if known.refusal != error.reason:
                log.warning("node not admitted", node=provider.spiffe_id, reason=error.reason, detail=str(error))
            known.refusal = error.reason
            # A node that renews has a new key before the registry has a session for it: the old link serves meanwhile.
            if not self._is_live(known):
                known.admitted = None
                self._rank(provider.spiffe_id)
            return
        # Its load may have changed meanwhile; a change of anything that was verified makes another `_Known`.
        candidate = _candidate(known.provider, link.lease, session)
        known.admitted = Upstream(candidate, known.peer, link, session, document)
        self._rank(provider.spiffe_id)
        log.info("node admitted", node=provider.spiffe_id, session=session.session_id)

    async def _watch(self) -> None:
        channel = await self._registry.channel(_CALL_SECONDS)
        call = registry_pb2_grpc.ProviderRegistryServiceStub(channel).Watch(registry_pb2.WatchRequest())
        try:
            while True:
                with remote_errors():
                    async with asyncio.timeout(_WATCH_SILENCE_SECONDS):
                        event = await call.read()
                if not isinstance(event, registry_pb2.WatchResponse):
                    return  # The end of the stream.
                self.take(event)
        except TimeoutError:
            log.warning("the registry's watch fell silent")
            # The next watch is to be another instance's, where there is one.
            channel.is_away = True
        finally:
            call.cancel()

    def _list(self, provider: registry_pb2.Provider) -> None:
        self._dropped.pop(provider.spiffe_id, None)
        known = self._known.get(provider.spiffe_id)
        if known is None and len(self._known) >= self._max_listed:
            log.warning("a node too many is passed over", node=provider.spiffe_id[:100])
            return
        if known is None or _verified_part(known.provider) != _verified_part(provider):
            peer = self._peer(provider.endpoint)
            renewed = known is not None and known.peer is peer and known.provider.spki_sha256 != provider.spki_sha256
            known = _Known(provider, peer, known.admitted if known is not None and renewed else None)
            self._known[provider.spiffe_id] = known
            self._changed.set()
        known.provider = provider
        if (admitted := known.admitted) is not None:
            candidate = _candidate(provider, admitted.lease, admitted.session)
            known.admitted = replace(admitted, candidate=candidate)
        self._rank(provider.spiffe_id)

    def _rank(self, name: str) -> None:
        """Give a node the place that its load earns it now, if it is admitted and still listed."""
        known = self._known.get(name)
        if known is None or known.admitted is None:
            self._ranking.remove(name)
            return
        candidate = known.admitted.candidate
        load = candidate.load
        self._ranking.put(name, candidate.models, busy(load, self._in_flight[name]), load.capacity)

    def _peer(self, endpoint: str) -> Peer:
        """Return the peer there. Those of endpoints that nothing uses any more are forgotten, many at a time."""
        if len(self._endpoints) >= 4 * self._max_listed:
            used = {known.provider.endpoint for known in (*self._known.values(), *self._dropped.values())}
            self._endpoints -= {unused for unused in self._endpoints - used if self._member.forget("node", unused)}
        self._endpoints.add(endpoint)
        return self._member.peer("node", endpoint)

    def _drop(self, spiffe_id: str) -> None:
        if (known := self._known.pop(spiffe_id, None)) is not None:
            self._ranking.remove(spiffe_id)
            self._dropped[spiffe_id] = known
            if len(self._dropped) > self._max_listed:
                self._dropped.pop(next(iter(self._dropped)))


def _check_endpoint(endpoint: str) -> None:
    """Raise `EndpointMalformed` for what cannot be connected to: the registry is not trusted to have checked."""
    parts = _ENDPOINT.fullmatch(endpoint)
    if parts is None or int(parts[2]) > _MAX_PORT:
        raise EndpointMalformed("a node's endpoint must be host:port")


def _verified_part(provider: registry_pb2.Provider) -> tuple[bytes, str, bytes]:
    """What a verification is about; everything else that the registry says may change under it."""
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
        draining=provider.draining,
        tee_type=appraisal.tee_type,
        has_gpu=appraisal.gpu is not None,
        region=region if isinstance(region, str) else None,
        evidence_time_ms=lease.evidence.challenge.issued_at * 1000,
    )
