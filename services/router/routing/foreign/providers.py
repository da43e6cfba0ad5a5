"""It is responsible for the foreign providers that policy lists: each verified before it is needed, and anew before
that ends, never on the way of a request that finds it as it was.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress

from libs.aci.endpoints import Endpoint
from libs.aci.session import Citable
from libs.identity.freshness import PolicyKeeper
from libs.policy.document import Policy
from libs.policy.foreign import ForeignProvider
from services.router.prompt import Constraints
from services.router.reading import Reading
from services.router.routing.foreign.adapter import Adapter
from services.router.routing.foreign.known import NOT_LISTED, SERVES_UNVERIFIED, Known
from services.router.routing.foreign.record import SessionRecord
from services.router.routing.foreign.route import ForeignRoute
from services.router.routing.foreign.selection import Wanted, lacking, select_foreign

_LOOK_SECONDS = 1.0


class ForeignProviders:
    """All providers of the policy in force, and how each stands."""

    def __init__(
        self,
        policy: PolicyKeeper,
        adapter: Callable[[ForeignProvider], Adapter],
        record: SessionRecord,
        reading: Reading,
    ) -> None:
        self._policy = policy
        self._adapter = adapter
        self._record = record
        self._reading = reading
        self._known: dict[str, Known] = {}
        self._judged: Policy | None = None
        self._in_flight: Counter[str] = Counter()
        self._choice = random.SystemRandom()

    def choose(
        self, model: str, endpoint: Endpoint, constraints: Constraints, tenant_id: str, tried: frozenset[str]
    ) -> ForeignRoute | None:
        """Return the way to the provider to use, None where none may serve. Raises
        `TenantConstraintsUnmet`, `PolicyStale`, `PolicyNotValidNow`.
        """
        policy = self._policy.require_fresh()
        listed = {known.name: known for known in self._listed(policy)}
        wanted = Wanted(model, endpoint, constraints, tenant_id, policy.constraints.of(tenant_id))
        name = select_foreign(
            [known.candidate() for known in listed.values()],
            wanted,
            now=time.time(),
            choice=self._choice,
            in_flight=self._in_flight,
            excluded=tried,
        )
        return None if name is None else ForeignRoute(listed[name], wanted, self._in_flight, self._reading)

    def listing(self, model: str) -> frozenset[str]:
        """Name the providers of this model that policy lists, whether or not they may serve now."""
        return frozenset(known.name for known in self._of(model))

    def why_none(self, model: str, constraints: Constraints, tenant_id: str) -> list[str]:
        """Return the reasons for which providers of this model are not verified, as far as that keeps them from it."""
        demanded = constraints.verified or self._policy.current.constraints.of(tenant_id).verified_only
        return sorted(
            {known.refusal for known in self._of(model) if not known.is_live}
            | {SERVES_UNVERIFIED for known in self._of(model) if known.is_live and known.session is None and demanded}
        )

    def models(self, tenant_id: str) -> dict[str, frozenset[Endpoint]]:
        """The models that a verified provider serves this tenant now, and where it can be asked for each. What is
        served unverified is not listed.
        """
        tenant, now = self._policy.current.constraints.of(tenant_id), time.time()
        verified = [known for known in self._of(None) if known.session is not None]
        serving = [known for known in verified if not lacking(known.candidate(), tenant, now)]
        served: defaultdict[str, frozenset[Endpoint]] = defaultdict(frozenset)
        for known in serving:
            for model in known.provider.models:
                served[model] |= known.adapter.declaration.endpoints
        return served

    def current_sessions(self, upstream_name: str | None, model: str | None) -> list[Citable]:
        """The sessions that could be cited now (ACI §8.1)."""
        chosen = [known for known in self._of(model) if upstream_name in (None, known.name)]
        return [citable for known in chosen if (citable := known.citable) is not None]

    async def session(self, identifier: str) -> bytes:
        """Return a session document, current or past. Raises `NotFound`."""
        return await self._record.find(identifier)

    async def maintain(self) -> None:
        """Follow the policy, and verify what is due, for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for known in await self._due():
                    tasks.create_task(known.refresh())
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._policy.advanced()

    async def verify(self) -> None:
        """Follow the policy, and verify what is due, once."""
        async with asyncio.TaskGroup() as tasks:
            for known in await self._due():
                tasks.create_task(known.refresh())

    async def _due(self) -> list[Known]:
        await self._follow(self._policy.current)
        return [known for known in self._known.values() if known.is_due()]

    async def _follow(self, policy: Policy) -> None:
        """Take up what policy lists now, and judge what stands again under its rules."""
        if policy is self._judged:
            return
        listed = {provider.name: provider for provider in policy.foreign_providers}
        for name, known in list(self._known.items()):
            if listed.get(name) != known.provider:
                known.withdraw(NOT_LISTED)
                del self._known[name]
        for name, provider in listed.items():
            known = self._known.get(name) or self._make(provider)
            if (why := await known.refused_by(policy)) is not None:
                known.withdraw(why)
                known = self._make(provider)
                known.refusal = why
            known.hasten()
            self._known[name] = known
        self._judged = policy

    def _make(self, provider: ForeignProvider) -> Known:
        return Known(provider, self._adapter(provider), self._policy, self._record)

    def _of(self, model: str | None) -> list[Known]:
        listed = self._listed(self._policy.current)
        return [known for known in listed if model is None or model in known.provider.models]

    def _listed(self, policy: Policy) -> list[Known]:
        """Those that this very policy lists as they are known here, whether it was followed already or not."""
        known = [self._known.get(provider.name) for provider in policy.foreign_providers]
        return [
            one
            for one, provider in zip(known, policy.foreign_providers, strict=True)
            if one is not None and one.provider == provider
        ]
