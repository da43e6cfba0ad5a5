"""It is responsible for where a prompt may go: a node of the mesh, or else a foreign provider that policy lists."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import Protocol

from libs.aci.endpoints import Endpoint
from services.router.errors import (
    EndpointNotOffered,
    ModelNotFound,
    RouterError,
    SessionNotAccepted,
    UpstreamVerificationFailed,
)
from services.router.prompt import Prompt
from services.router.routing.foreign.providers import ForeignProviders
from services.router.routing.hop import Errand, NodeUnavailable, Reached, Step, forward
from services.router.routing.listed import Upstream
from services.router.routing.upstreams import Upstreams


class Route(Protocol):
    """One way that a prompt may take."""

    @property
    def name(self) -> str:
        """Tells routes apart, for logs and for what has been tried."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Count as taken, until the context is left."""
        ...

    def forward(self, errand: Errand) -> AsyncGenerator[Step, None]:
        """Yield `Reached`, then `Begun`, then bytes, then `Ended`. Raises as `hop.forward` does."""
        ...


class NodeNoLongerSuits(NodeUnavailable):
    """Policy or registry have said something since the node was chosen: this prompt may not go there any more."""

    status = UpstreamVerificationFailed.status
    type = UpstreamVerificationFailed.type
    reason = "NODE_NO_LONGER_SUITS"


@dataclass(frozen=True, slots=True)
class NodeRoute:
    """The way to a node."""

    upstream: Upstream
    upstreams: Upstreams

    @property
    def name(self) -> str:
        return self.upstream.candidate.spiffe_id

    async def forward(self, errand: Errand) -> AsyncGenerator[Step, None]:
        """See `hop.forward`."""
        breakers, prompt = self.upstreams.breakers, errand.prompt
        attempting = breakers.attempt(self.name, prompt.model, errand.tenant_id, streams=prompt.stream)
        with self.held(), attempting as attempt:
            async with aclosing(forward(self.upstream, errand, self.upstreams.settings)) as steps:
                async for step in steps:
                    if isinstance(step, Reached):
                        self._require_suiting(errand)
                    breakers.note(attempt, step)
                    yield step

    def held(self) -> AbstractContextManager[None]:
        """See `Route.held`."""
        return self.upstreams.using(self.upstream)

    def _require_suiting(self, errand: Errand) -> None:
        """Connecting may have taken a while: what was chosen must still be what this prompt may go to. Raises
        `NodeNoLongerSuits`.
        """
        prompt = errand.prompt
        if not self.upstreams.still_suits(
            self.upstream, prompt.model, errand.endpoint, prompt.constraints, errand.tenant_id
        ):
            raise NodeNoLongerSuits("the node may not serve this request any more", excused=True)


class Routes:
    """Chooses routes."""

    def __init__(self, upstreams: Upstreams, foreign: ForeignProviders) -> None:
        self._upstreams = upstreams
        self._foreign = foreign

    async def turn(
        self, prompt: Prompt, tenant_id: str, wants: Hashable, choose: Callable[[], Route], seconds: float
    ) -> Route:
        """Return what `choose` does: at once or, while it raises `NodesFull`, in the tenant's turn (`Queue.turn`)."""
        return await self._upstreams.queue.turn(prompt.model, tenant_id, wants, choose, seconds)

    def choose(self, prompt: Prompt, endpoint: Endpoint, tenant_id: str, tried: frozenset[str]) -> Route:
        """Return a node that may serve this prompt, or where there is none a foreign provider; none of those `tried`.

        Raises what refuses: `ModelNotFound`, `EndpointNotOffered`, `SessionNotAccepted`, `TenantConstraintsUnmet`,
        `UpstreamVerificationFailed`, `PolicyStale`; and `NodesFull` where those that may have no room.
        """
        try:
            upstream = self._upstreams.choose(
                prompt.model, endpoint, prompt.constraints, tenant_id, tried, beginning=prompt.beginning
            )
            return NodeRoute(upstream, self._upstreams)
        except RouterError as refusal:
            foreign = self._foreign.choose(prompt.model, endpoint, prompt.constraints, tenant_id, tried)
            if foreign is not None:
                return foreign
            raise self._why(refusal, prompt, endpoint, tenant_id, tried) from refusal

    def _why(
        self, refusal: RouterError, prompt: Prompt, endpoint: Endpoint, tenant_id: str, tried: frozenset[str]
    ) -> RouterError:
        """Return the refusal, with what keeps foreign providers of this model from serving it."""
        if not isinstance(refusal, ModelNotFound | UpstreamVerificationFailed):
            return refusal
        if prompt.constraints.session_ids is not None and self._foreign.listing(prompt.model):
            return SessionNotAccepted("none of the pinned sessions can serve this request")
        reasons = self._foreign.why_none(prompt.model, prompt.constraints, tenant_id)
        if not reasons and tried & self._foreign.listing(prompt.model):
            return UpstreamVerificationFailed("nobody else who is verified can serve this model now")
        if not reasons:
            elsewhere = isinstance(refusal, ModelNotFound) and prompt.model in self._foreign.models(tenant_id)
            return EndpointNotOffered(f"nobody offers {endpoint.path} for this model") if elsewhere else refusal
        reasons = sorted({*reasons, *(refusal.why.split(", ") if refusal.why else ())})
        return UpstreamVerificationFailed("nobody verified can serve this model now", ", ".join(reasons))
