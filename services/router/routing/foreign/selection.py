"""Responsible for which foreign provider may serve a request, and which of them does: pure functions.

A provider that is verified may serve whoever may be served by a node, where it shows what policy demands for the
tenant. One that is not serves only tenants whom policy names for it and does not limit otherwise, and never a request
that demands verified serving.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from libs.aci.endpoints import Endpoint
from libs.policy.constraints import TenantConstraints
from services.router.errors import TenantConstraintsUnmet
from services.router.prompt import Constraints


@dataclass(frozen=True, slots=True)
class ForeignCandidate:
    """One provider as it stands now."""

    name: str
    models: Collection[str]
    """As clients of this mesh write them."""
    endpoints: Collection[Endpoint]
    session_id: str | None
    """None: nothing is verified."""
    until: float
    """Unix seconds."""
    tenants: Collection[str]
    """Who may be sent there although nothing is verified."""
    verified_at: float = 0.0
    """When the evidence was made, Unix seconds: it answers this router's own nonce."""
    tee_type: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one request asks of whoever serves it."""

    model: str
    endpoint: Endpoint
    constraints: Constraints
    """The request's own."""
    tenant_id: str
    tenant: TenantConstraints
    """What policy demands for the tenant."""

    def may_go_to(self, candidate: ForeignCandidate, now: float) -> bool:
        """Say whether the provider, as it stands, may be handed the request."""
        return self.is_served_by(candidate, now) and not lacking(candidate, self.tenant, now)

    def is_served_by(self, candidate: ForeignCandidate, now: float) -> bool:
        """The same, but for what policy demands for the tenant of whoever is verified."""
        offers = self.model in candidate.models and self.endpoint in candidate.endpoints
        if not offers or candidate.until <= now:
            return False
        if candidate.session_id is None:
            demanded = self.constraints.verified or self.tenant.verified_only
            return not demanded and self.tenant_id in candidate.tenants
        return self.constraints.session_ids is None or candidate.session_id in self.constraints.session_ids


def select_foreign(
    candidates: Iterable[ForeignCandidate],
    wanted: Wanted,
    *,
    now: float,
    choice: random.Random,
    in_flight: Mapping[str, int],
    excluded: Collection[str],
) -> str | None:
    """Return the name of the provider to use, a verified one before any other; None where none may serve.

    `excluded` are those already tried. Raises `TenantConstraintsUnmet`, but where sessions are pinned: that none of
    them can serve is said of those.
    """
    serving = [candidate for candidate in candidates if wanted.is_served_by(candidate, now)]
    meeting = [candidate for candidate in serving if wanted.may_go_to(candidate, now)]
    if serving and not meeting and wanted.constraints.session_ids is None:
        raise TenantConstraintsUnmet(sorted({name for one in serving for name in lacking(one, wanted.tenant, now)}))
    eligible = [candidate for candidate in meeting if candidate.name not in excluded]
    if not eligible:
        return None
    order = {candidate.name: (candidate.session_id is None, in_flight.get(candidate.name, 0)) for candidate in eligible}
    least = min(order.values())
    return choice.choice([name for name, rank in order.items() if rank == least])


def lacking(candidate: ForeignCandidate, tenant: TenantConstraints, now: float) -> frozenset[str]:
    """Return the members of the tenant's entry in policy that a provider does not satisfy.

    Its region, its weights and a GPU of its own are never shown to this router, so they satisfy no demand.
    """
    age = tenant.max_evidence_age_seconds
    met = {
        "models": tenant.models is None,
        "regions": tenant.regions is None,
        "hardware.tee_types": tenant.tee_types is None or candidate.tee_type in tenant.tee_types,
        "hardware.gpu_required": not tenant.gpu_required,
        "max_evidence_age_seconds": age is None or now - candidate.verified_at <= age,
    }
    return frozenset(name for name, is_met in met.items() if not is_met)
