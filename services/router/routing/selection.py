"""Responsible for choosing the node that serves a request: a pure function of what the router knows at that moment.

Every candidate has already been appraised by this router; one without a live lease is never chosen, and no candidate is
a refusal, never a downgrade.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from libs.aci.endpoints import FIRST, Endpoint
from libs.policy.constraints import TenantConstraints
from services.router.errors import (
    EndpointNotOffered,
    ModelNotFound,
    SessionNotAccepted,
    TenantConstraintsUnmet,
    UpstreamVerificationFailed,
)
from services.router.prompt import Constraints


@dataclass(frozen=True, slots=True)
class Load:
    """What a node last reported. `capacity` is how many requests it can generate at once."""

    running: int
    waiting: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node. Times are in milliseconds since the Unix epoch; digests and ids are lower-case hex."""

    spiffe_id: str
    target: str
    models: Mapping[str, str]
    """The models that it serves: id to SHA-256 of the weights."""
    evidence_digest: str
    session_id: str
    lease_until_ms: int
    load: Load
    endpoints: Collection[Endpoint] = FIRST
    """Where its engine answers."""
    draining: bool = False
    verified: bool = True
    """False for a provider whose evidence nobody can appraise."""
    tee_type: str | None = None
    has_gpu: bool = False
    """Whether its GPUs answered the same challenge as its CPU."""
    region: str | None = None
    """As its measured code claims it; None: it claims none, and is in none."""
    evidence_time_ms: int = 0
    """When the challenge was issued that its evidence answers."""


def select(
    candidates: Iterable[Candidate],
    *,
    model: str,
    endpoint: Endpoint,
    constraints: Constraints,
    tenant: TenantConstraints,
    allowed_models: Mapping[str, Collection[str]],
    now_ms: int,
    choice: random.Random,
    in_flight: Mapping[str, int] | None = None,
    excluded: Collection[str] = (),
) -> Candidate:
    """Return the least loaded node that may serve the model at this endpoint; ties fall to `choice`.

    `constraints` are the request's, `tenant` the policy's for who makes it. `allowed_models` is the policy's: id to
    allowed weights. `in_flight` counts this router's own requests by SPIFFE ID, which the node's last report may lack.
    `excluded` are nodes already tried: they are not chosen, but nobody is told that what they offer is missing. Where
    sessions are pinned and none of them can serve, that is the refusal, whatever keeps them from it (ACI §5.3). Raises
    `ModelNotFound`, `SessionNotAccepted`, `EndpointNotOffered`, `TenantConstraintsUnmet` or
    `UpstreamVerificationFailed`.
    """
    weights = allowed_models.get(model)
    if weights is None or not tenant.allows_model(model):
        raise ModelNotFound("no such model; GET /v1/models lists those served")
    serving = [candidate for candidate in candidates if _serves(candidate, model, weights, constraints, tenant, now_ms)]
    if constraints.session_ids is not None:
        serving = [
            candidate
            for candidate in serving
            if candidate.session_id in constraints.session_ids
            and endpoint in candidate.endpoints
            and not _lacking(candidate, model, tenant, now_ms)
        ]
    elif serving:
        serving = _meeting(_offering(serving, endpoint), model, tenant, now_ms)
    eligible = [candidate for candidate in serving if candidate.spiffe_id not in excluded]
    if not eligible and constraints.session_ids is not None:
        raise SessionNotAccepted("none of the pinned sessions can serve this request")
    if not eligible:
        raise UpstreamVerificationFailed("no verified node can serve this model now")
    loads = [_relative_load(candidate, in_flight or {}) for candidate in eligible]
    least = min(loads)
    return choice.choice([candidate for candidate, load in zip(eligible, loads, strict=True) if load == least])


def suits(
    candidate: Candidate,
    *,
    model: str,
    endpoint: Endpoint,
    constraints: Constraints,
    tenant: TenantConstraints,
    allowed_models: Mapping[str, Collection[str]],
    now_ms: int,
) -> bool:
    """Say whether `select` would return this candidate if there were no other."""
    return (
        tenant.allows_model(model)
        and endpoint in candidate.endpoints
        and _serves(candidate, model, allowed_models.get(model, ()), constraints, tenant, now_ms)
        and (constraints.session_ids is None or candidate.session_id in constraints.session_ids)
        and not _lacking(candidate, model, tenant, now_ms)
    )


def busy(load: Load, in_flight: int) -> int:
    """The larger of what a node reported and what this router gave it: their sum would count requests twice."""
    return max(load.running + load.waiting, in_flight)


def _serves(
    candidate: Candidate,
    model: str,
    weights: Collection[str],
    constraints: Constraints,
    tenant: TenantConstraints,
    now_ms: int,
) -> bool:
    """Say whether it can serve the model now, and is verified where that is asked for."""
    return (
        candidate.models.get(model) in weights
        and candidate.lease_until_ms > now_ms
        and not candidate.draining
        and candidate.load.capacity > 0
        and (candidate.verified or not (constraints.verified or tenant.verified_only))
    )


def _offering(candidates: list[Candidate], endpoint: Endpoint) -> list[Candidate]:
    """Return those that offer the endpoint. Raises `EndpointNotOffered` if none does."""
    offering = [candidate for candidate in candidates if endpoint in candidate.endpoints]
    if not offering:
        raise EndpointNotOffered(f"no node offers {endpoint.path} for this model")
    return offering


def _meeting(candidates: list[Candidate], model: str, tenant: TenantConstraints, now_ms: int) -> list[Candidate]:
    """Return those that are what policy demands for the tenant. Raises `TenantConstraintsUnmet` if none is."""
    unmet: set[str] = set()
    meeting: list[Candidate] = []
    for candidate in candidates:
        lacking = _lacking(candidate, model, tenant, now_ms)
        unmet |= lacking
        if not lacking:
            meeting.append(candidate)
    if not meeting:
        raise TenantConstraintsUnmet(sorted(unmet))
    return meeting


def _lacking(candidate: Candidate, model: str, tenant: TenantConstraints, now_ms: int) -> set[str]:
    """Return the members of the tenant's entry that the candidate does not satisfy."""
    age = tenant.max_evidence_age_seconds
    met = {
        "models": tenant.allows_weights(model, candidate.models.get(model)),
        "regions": tenant.regions is None or candidate.region in tenant.regions,
        "hardware.tee_types": tenant.tee_types is None or candidate.tee_type in tenant.tee_types,
        "hardware.gpu_required": candidate.has_gpu or not tenant.gpu_required,
        "max_evidence_age_seconds": age is None or now_ms - candidate.evidence_time_ms <= age * 1000,
    }
    return {name for name, is_met in met.items() if not is_met}


def _relative_load(candidate: Candidate, in_flight: Mapping[str, int]) -> Fraction:
    return Fraction(busy(candidate.load, in_flight.get(candidate.spiffe_id, 0)), candidate.load.capacity)
