"""Responsible for choosing the foreign provider that serves a request, where any may: a pure function.

A provider that is verified may serve whoever may be served by a node. One that is not serves only tenants whom policy
names for it, and never a request that demands verified serving.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from services.router.constraints import Constraints


@dataclass(frozen=True, slots=True)
class ForeignCandidate:
    """One provider as it stands now."""

    name: str
    models: Collection[str]
    """As clients of this mesh write them."""
    session_id: str | None
    """None: nothing is verified."""
    until: float
    """Unix seconds."""
    tenants: Collection[str]
    """Who may be sent there although nothing is verified."""


def select_foreign(
    candidates: Iterable[ForeignCandidate],
    *,
    model: str,
    constraints: Constraints,
    tenant_id: str,
    now: float,
    choice: random.Random,
    in_flight: Mapping[str, int],
    excluded: Collection[str],
) -> str | None:
    """Return the name of the provider to use, a verified one before any other; None where none may serve."""
    eligible = [
        candidate
        for candidate in candidates
        if model in candidate.models
        and candidate.until > now
        and candidate.name not in excluded
        and _may_serve(candidate, constraints, tenant_id)
    ]
    if not eligible:
        return None
    order = {candidate.name: (candidate.session_id is None, in_flight.get(candidate.name, 0)) for candidate in eligible}
    least = min(order.values())
    return choice.choice([name for name, rank in order.items() if rank == least])


def _may_serve(candidate: ForeignCandidate, constraints: Constraints, tenant_id: str) -> bool:
    if candidate.session_id is None:
        return not constraints.verified and tenant_id in candidate.tenants
    return constraints.session_ids is None or candidate.session_id in constraints.session_ids
