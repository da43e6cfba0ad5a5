"""It is responsible for all nodes that this router may use, and for which of them is handed a request.

The registry's word puts a node on the list; only this router's own appraisal makes it a candidate. The session that
receipts will cite must say what that appraisal says.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import structlog
from teemesh.registry.v1 import registry_pb2

from libs.aci.endpoints import Endpoint
from libs.aci.session import Citable
from libs.aci.whole_answers import MAX_MESSAGE_BYTES
from libs.errors import MeshError
from libs.identity.any_peer import Channels
from libs.identity.member import Member
from libs.identity.peers import Peer
from services.router.errors import UpstreamVerificationFailed
from services.router.metrics import RoutingMetrics
from services.router.prompt import Constraints
from services.router.routing.affinity import Affinity
from services.router.routing.breaker import Breakers
from services.router.routing.listed import Listed, Upstream
from services.router.routing.occupancy import Occupancy
from services.router.routing.preference import prefer
from services.router.routing.queue import Queue
from services.router.routing.ranking import Ranking
from services.router.routing.registry import Registry
from services.router.routing.selection import Candidate, select, suits
from services.router.routing.session_documents import SessionDocuments
from services.router.routing.settings import RoutingSettings

_RECONCILE_SECONDS = 1.0
_MAX_LISTED = 10_000
_MAX_VERIFYING = 64

log = structlog.get_logger()


class Upstreams:
    """All nodes that the registry lists, and which of them this router has verified."""

    def __init__(
        self,
        member: Member,
        registry: Channels,
        max_listed: int = _MAX_LISTED,
        *,
        settings: RoutingSettings | None = None,
        metrics: RoutingMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """So many listed nodes are considered at most: a registry can name any number that there are not. By `clock`
        breakers open and waiting is measured, in seconds.
        """
        self.settings = settings or RoutingSettings()
        metrics = metrics or RoutingMetrics()
        self.breakers = Breakers(self.settings, metrics.breakers, clock)
        self.queue = Queue(self.settings, metrics, clock)
        self._member = member
        self._registry = Registry(registry)
        self._sessions = SessionDocuments(registry)
        self._max_listed = max_listed
        self._known: dict[str, Listed] = {}
        self._dropped: dict[str, Listed] = {}
        """Nodes that the registry listed once, for what may still be said of them."""
        self._endpoints: set[str] = set()
        """Wherever a node was ever said to be, until that is forgotten."""
        self._verifying = asyncio.Semaphore(_MAX_VERIFYING)
        self._occupancy = Occupancy()
        self._affinity = Affinity()
        self._choice = random.SystemRandom()
        self._ranking = Ranking(self._choice)
        self._changed = asyncio.Event()

    def choose(
        self,
        model: str,
        endpoint: Endpoint,
        constraints: Constraints,
        tenant_id: str,
        tried: frozenset[str],
        *,
        beginning: bytes = b"",
    ) -> Upstream:
        """Return the node to use: of those that may serve and are not avoided the least busy, or one that is hardly
        busier and has served what begins alike. Where all are avoided, the least busy of them.

        Raises `ModelNotFound`, `EndpointNotOffered`, `SessionNotAccepted`, `TenantConstraintsUnmet`,
        `UpstreamVerificationFailed`, and `NodesFull` where those that may serve have no room.
        """
        policy = self._member.policy.require_fresh()
        tenant, now_ms = policy.constraints.of(tenant_id), int(time.time() * 1000)

        def suiting(name: str) -> Upstream | None:
            upstream = self._known[name].admitted
            if (
                upstream is not None
                and name not in tried
                and suits(
                    upstream.candidate,
                    model=model,
                    endpoint=endpoint,
                    constraints=constraints,
                    tenant=tenant,
                    allowed_models=policy.models,
                    now_ms=now_ms,
                )
                and self._known[name].is_live
            ):
                return upstream
            return None

        preferred = prefer(
            self._ranking.of(model, endpoint),
            self._affinity.of(model, tenant_id, beginning) if beginning else (),
            suiting=suiting,
            admits=partial(self.breakers.admits, tenant_id=tenant_id),
            busyness=self._busyness,
            settings=self.settings,
        )
        if preferred is not None:
            return preferred
        # Nobody may serve it. The selection itself says why.
        live = {upstream.candidate.spiffe_id: upstream for upstream in self._live()}
        try:
            chosen = select(
                [upstream.candidate for upstream in live.values()],
                model=model,
                endpoint=endpoint,
                constraints=constraints,
                tenant=tenant,
                allowed_models=policy.models,
                now_ms=now_ms,
                choice=self._choice,
                in_flight=self._occupancy.own(),
                excluded=tried,
            )
        except UpstreamVerificationFailed as error:
            raise UpstreamVerificationFailed(str(error), self._why_none(model)) from error
        return live[chosen.spiffe_id]

    def _busyness(self, name: str) -> float:
        """How many requests a ranked node has, relative to its capacity."""
        admitted = self._known[name].admitted
        return math.inf if admitted is None else self._occupancy.busy(name) / admitted.candidate.load.capacity

    def still_suits(
        self, upstream: Upstream, model: str, endpoint: Endpoint, constraints: Constraints, tenant_id: str
    ) -> bool:
        """Say whether `choose` could return this node now, by what policy and registry have said since."""
        known = self._known.get(upstream.candidate.spiffe_id)
        if known is None or known.admitted is None:
            return False
        policy = self._member.policy.current
        # One that has renewed has another session; the one that was chosen lives on beside it.
        renewed = known.admitted.session.session_id != upstream.session.session_id
        return suits(
            upstream.candidate if renewed else known.admitted.candidate,
            model=model,
            endpoint=endpoint,
            constraints=constraints,
            tenant=policy.constraints.of(tenant_id),
            allowed_models=policy.models,
            now_ms=int(time.time() * 1000),
        )

    @contextmanager
    def using(self, upstream: Upstream) -> Iterator[None]:
        """Count a request as this node's while it runs."""
        name = upstream.candidate.spiffe_id
        try:
            with self._occupancy.using(name):
                self._rank(name)
                yield
        finally:
            self._rank(name)
            self.queue.news(upstream.candidate.models)

    def current_sessions(self, upstream_name: str | None, model: str | None) -> list[Citable]:
        """The sessions that could be cited now, newest first (ACI section 8.1)."""
        chosen = [
            upstream
            for upstream in self._live()
            if upstream_name in (None, upstream.candidate.spiffe_id)
            and (model is None or model in upstream.candidate.models)
        ]
        newest_first = sorted(chosen, key=lambda upstream: -upstream.lease.appraisal.appraised_at)
        return [upstream.citable for upstream in newest_first]

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

    def endpoints(self, tenant_id: str) -> dict[str, frozenset[Endpoint]]:
        """The same models: where a node serves each."""
        tenant = self._member.policy.current.constraints.of(tenant_id)
        served: defaultdict[str, frozenset[Endpoint]] = defaultdict(frozenset)
        for candidate in self.candidates():
            for model, weights in candidate.models.items():
                if tenant.allows_weights(model, weights):
                    served[model] |= frozenset(candidate.endpoints)
        return served

    async def follow(self) -> None:
        """Follow the registry for ever. When it is away the last list stands, and its leases run out by themselves."""
        await self._registry.follow(self.take)

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
                if not known.is_current:
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
        admitted = [known.admitted for known in self._known.values() if known.admitted and known.is_live]
        return [upstream for upstream in admitted if upstream.candidate.lease_until_ms > now_ms]

    def _why_none(self, model: str) -> str | None:
        """Why those that would serve the model may not, also when the registry has dropped them for it already."""
        listed = [known.why for known in self._known.values() if known.serves(model) and not known.is_live]
        dropped = [known.peer.refusal for known in self._dropped.values() if known.serves(model)]
        return ", ".join(sorted({why for why in (*listed, *dropped) if why is not None})) or None

    async def _verify_in_turn(self, known: Listed) -> None:
        async with self._verifying:
            # The registry may have said something else of it meanwhile.
            if self._known.get(known.name) is known:
                await self._verify(known)

    async def _verify(self, known: Listed) -> None:
        try:
            known.admitted = await known.appraised(self.session)
        except MeshError as error:
            if known.refusal != error.reason:
                log.warning("node not admitted", node=known.name, reason=error.reason, detail=str(error))
            known.refusal = error.reason
            # A node that renews has a new key before the registry has a session for it: the old link serves meanwhile.
            if not known.is_live:
                known.admitted = None
                self._rank(known.name)
            return
        self._rank(known.name)
        self.queue.news(known.admitted.candidate.models)
        log.info("node admitted", node=known.name, session=known.admitted.session.session_id)

    def _list(self, provider: registry_pb2.Provider) -> None:
        self._dropped.pop(provider.spiffe_id, None)
        reports = False
        known = self._known.get(provider.spiffe_id)
        if known is None and len(self._known) >= self._max_listed:
            log.warning("a node too many is passed over", node=provider.spiffe_id[:100])
            return
        if known is None or not known.is_about(provider):
            peer = self._peer(provider.endpoint)
            renewed = known is not None and known.peer is peer and known.provider.spki_sha256 != provider.spki_sha256
            known = Listed(provider, peer, known.admitted if known is not None and renewed else None)
            self._known[provider.spiffe_id] = known
            self.breakers.know(provider.spiffe_id)
            self._occupancy.know(provider.spiffe_id)
            self._changed.set()
            reports = True
        # What is told again, for another reason, is no new report.
        reports = reports or _reported(known.provider) != _reported(provider)
        known.update(provider)
        if reports:
            load = provider.load
            self._occupancy.reported(provider.spiffe_id, load.running_requests + load.waiting_requests)
        self._rank(provider.spiffe_id)
        self.queue.news([served.id for served in provider.models])

    def _rank(self, name: str) -> None:
        """Give a node the place that its load earns it now, if it is admitted and still listed."""
        known = self._known.get(name)
        if known is None or known.admitted is None:
            self._ranking.remove(name)
            self._affinity.remove(name)
            return
        candidate = known.admitted.candidate
        offers = [(model, endpoint) for model in candidate.models for endpoint in candidate.endpoints]
        self._ranking.put(name, offers, self._occupancy.busy(name), candidate.load.capacity)
        self._affinity.put(name, candidate.models if candidate.load.capacity > 0 else ())

    def _peer(self, endpoint: str) -> Peer:
        """Return the peer there. Those of endpoints that nothing uses any more are forgotten, many at a time."""
        if len(self._endpoints) >= 4 * self._max_listed:
            used = {known.provider.endpoint for known in (*self._known.values(), *self._dropped.values())}
            self._endpoints -= {unused for unused in self._endpoints - used if self._member.forget("node", unused)}
        self._endpoints.add(endpoint)
        return self._member.peer("node", endpoint, answer_bytes=MAX_MESSAGE_BYTES)

    def _drop(self, spiffe_id: str) -> None:
        if (known := self._known.pop(spiffe_id, None)) is not None:
            self._ranking.remove(spiffe_id)
            self._affinity.remove(spiffe_id)
            self._occupancy.forget(spiffe_id)
            self.breakers.forget(spiffe_id)
            # Who waits for it alone is to hear that it is gone.
            self.queue.news([served.id for served in known.provider.models])
            self._dropped[spiffe_id] = known
            if len(self._dropped) > self._max_listed:
                self._dropped.pop(next(iter(self._dropped)))


def _reported(provider: registry_pb2.Provider) -> tuple[int, registry_pb2.Load]:
    return provider.lease_until_ms, provider.load
